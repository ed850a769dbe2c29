"""Whether a bundle takes the place of the one that answers: both are asked the same, and a statistical rule
decides.

It does if it can be excluded that it is worse than is allowed: that it answers fewer golden requests rightly
(score test for paired shares, Tango, Statistics in Medicine 17(8), 1998), that it takes longer (signed-rank
test of the pairs, Wilcoxon 1945), or that it fails more often on other requests (Fisher's exact test). Who
says nothing against it, for want of requests, says nothing for it either.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError
from scipy import stats

from ...pipelines.bundle import LoadedBundle
from ...pipelines.media.text import normalise
from ...workflows.errors import EaglerayError
from ...workflows.spec import Spec
from .spec import PromotionSpec
from .switching import Tally

LEAST_GOLDEN, LEAST_RIGHT = 30, 10
GOLDEN_TOP_K = 10


class GoldenRequest(Spec):
    """A request, and what is right."""

    path: Literal["/v1/search", "/v1/answer", "/v1/assess"]
    body: Mapping[str, Any]
    expect: str
    """The answer, a document's category, or id or caption of a picture that must be found; case and spacing
    make no difference."""

    def is_right(self, answer: Mapping[str, Any]) -> bool:
        """Whether an answer (JSON) is what is expected."""
        if self.path == "/v1/answer":
            found = [str(answer.get("answer", ""))]
        elif self.path == "/v1/assess":
            found = [str((answer.get("document") or {}).get("category"))]
        else:
            found = [str(one.get(name)) for one in answer.get("results", ()) for name in ("id", "caption")]
        return normalise(self.expect) in {normalise(one) for one in found}


@dataclass(frozen=True)
class Outcome:
    """What came of a golden request.

    Attributes:
        right: whether the answer is.
        seconds: it took.
        failed: whether there was none, by the service's fault.
    """

    right: bool
    seconds: float
    failed: bool = False


Pair = tuple[Outcome, Outcome]
"""Of a golden request: of the bundle that answers, of the candidate."""


@dataclass(frozen=True)
class Verdict:
    """What is found.

    Attributes:
        lines: for people, one for each thing that was compared.
        against: why the candidate isn't promoted; empty if it is.
    """

    lines: tuple[str, ...]
    against: tuple[str, ...]

    @property
    def promotes(self) -> bool:
        """Whether the candidate takes the place."""
        return not self.against


def golden(bundle: LoadedBundle, spec: PromotionSpec) -> list[GoldenRequest]:
    """The requests that both are asked: a file's, or captions, by which their pictures must be found.

    Raises:
        EaglerayError: when the file can't be read, or there are too few.
    """
    if spec.golden is None:
        captions = list(dict.fromkeys(one for one in bundle.captions if one))
        places = np.linspace(0, len(captions) - 1, spec.num_golden if captions else 0)
        chosen = [captions[i] for i in places.round().astype(int)]
        found = [
            GoldenRequest(path="/v1/search", body={"text": one, "top_k": GOLDEN_TOP_K}, expect=one)
            for one in dict.fromkeys(chosen)
        ]
    else:
        found = _read(Path(spec.golden))
    if len(found) < LEAST_GOLDEN:
        raise EaglerayError(
            f"{len(found)} golden requests are too few to tell two bundles apart",
            f"give {LEAST_GOLDEN} and more, each a line of JSON with path, body and expect",
            spec.golden or "",
        )
    return found


def _read(path: Path) -> list[GoldenRequest]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EaglerayError(f"the golden requests can't be read: {error}", where=str(path)) from None
    found: list[GoldenRequest] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(GoldenRequest.model_validate(json.loads(line)))
            except ValidationError as error:
                said = f"{'.'.join(map(str, error.errors()[0]['loc']))}: {error.errors()[0]['msg']}"
            except ValueError as error:
                said = str(error)
            else:
                continue
            raise EaglerayError(
                f"line {number} is no golden request: {said}",
                "each line is JSON with path (/v1/search, /v1/answer or /v1/assess), body and expect",
                str(path),
            )
    return found


def ask_both(
    ask: Callable[[GoldenRequest, str], Outcome],
    live: str,
    candidate: str,
    requests: Sequence[GoldenRequest],
) -> list[Pair]:
    """Ask two bundles the same, one right after the other, and in turn either of them first.

    Args:
        ask: asks the bundle of a digest.
        live: digest of the one that answers.
        candidate: of the other.
        requests: what is asked.
    """
    pairs: list[Pair] = []
    for i, request in enumerate(requests):
        if i % 2:
            second = ask(request, candidate)
            pairs.append((ask(request, live), second))
        else:
            pairs.append((ask(request, live), ask(request, candidate)))
    return pairs


def judge(pairs: Sequence[Pair], live: Tally, candidate: Tally, spec: PromotionSpec) -> Verdict:
    """Decide.

    Args:
        pairs: outcomes of the golden requests.
        live: how the one that answers did on other requests.
        candidate: how the other did.
        spec: what is allowed.
    """
    doubt = 1 - spec.confidence
    lines: list[str] = []
    against: list[str] = []

    def compare(line: str, p: float, worse: str) -> None:
        lines.append(f"{line} (p = {p:.3g})")
        if p > doubt:
            against.append(worse)

    right = np.array([(old.right, new.right) for old, new in pairs])
    if right[:, 0].sum() < LEAST_RIGHT:
        against.append(
            f"the bundle that answers gets {right[:, 0].sum()} golden requests right, too few to compare with"
        )
    only_old, only_new = int((right[:, 0] & ~right[:, 1]).sum()), int((~right[:, 0] & right[:, 1]).sum())
    was, is_now = right.mean(axis=0)
    line = f"golden requests answered rightly: {was:.1%} before, {is_now:.1%} now, of {len(pairs)}"
    worse = f"it may answer over {spec.margin:.1%} fewer golden requests rightly ({was:.1%} → {is_now:.1%})"
    compare(line, worse_by(only_new, only_old, len(pairs), spec.margin), worse)

    ratios = np.array([new.seconds / old.seconds for old, new in pairs if not (old.failed or new.failed)])
    if len(ratios):
        p = _p_value(stats.wilcoxon(np.log(ratios) - math.log(spec.slower), alternative="less"))
        times = f"{np.median(ratios):.2f} times as long"
        compare(
            f"golden requests take {times}", p, f"it may take over {spec.slower:g} times as long ({times})"
        )

    counts = [
        (tally.failed + sum(pair[i].failed for pair in pairs), tally.answered + len(pairs))
        for i, tally in enumerate((live, candidate))
    ]
    (failed, asked), (fails, asks) = counts
    lines.append(f"failed: {failed} of {asked} requests before, {fails} of {asks} now")
    table = [[fails, asks - fails], [failed, asked - failed]]
    if _p_value(stats.fisher_exact(table, alternative="greater")) < doubt:
        against.append(f"it fails more often ({fails} of {asks} requests, {failed} of {asked} before)")
    return Verdict(tuple(lines), tuple(against))


def worse_by(only_new: int, only_old: int, count: int, margin: float) -> float:
    """p-value of the hypothesis that the share of right answers sinks by `margin` or more.

    Args:
        only_new: pairs in which the new one alone is right.
        only_old: in which the old one alone is.
        count: pairs.
        margin: above 0.
    """
    # the likeliest share of pairs with the old one alone, if the difference is -margin
    difference = -margin
    a = 2 * count
    b = -(only_new + only_old) + (2 * count - (only_new - only_old)) * difference
    c = -only_old * difference * (1 - difference)
    share = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = count * (2 * share + difference * (1 - difference))
    return float(stats.norm.sf((only_new - only_old - count * difference) / math.sqrt(variance)))


def _p_value(result: Any) -> float:  # noqa: ANN401 - scipy's results have no types
    return float(result.pvalue)
