"""From scores to verdicts: pure, and the only place that says what is flagged and what is blocked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from math import exp, isfinite

from ....pipelines.index import Hit
from ..messages import Judged, Judgement, Verdict
from ..spec import Action, PairRule, PicturePolicy, TextPolicy, Thresholds

ORDER: Mapping[Action, int] = {"allow": 0, "flag": 1, "block": 2}
NEIGHBOURS = 10
"""Indexed pictures that say what a picture shows."""
SHARPNESS = 60.0
"""How much more a near one counts than a far one: e to this times the difference of their cosines."""


def judge(of: Judged, category: str, score: float, thresholds: Thresholds) -> Judgement:
    """What a score comes to.

    Raises:
        ValueError: when it is no number from 0 to 1; nothing may pass by it.
    """
    if not isfinite(score) or not 0 <= score <= 1:
        raise ValueError(f"{category} of {of} is {score}, which is no score")
    action: Action = "allow"
    reached: float | None = None
    if thresholds.block is not None and score >= thresholds.block:
        action, reached = "block", thresholds.block
    elif thresholds.flag is not None and score >= thresholds.flag:
        action, reached = "flag", thresholds.flag
    return Judgement(of=of, category=category, score=round(score, 4), threshold=reached, action=action)


def judge_all(of: Judged, scores: Mapping[str, float], policy: TextPolicy | PicturePolicy) -> list[Judgement]:
    """What the scores of one content come to, by category.

    Raises:
        ValueError: when a category has no score: what wasn't judged may not pass.
    """
    wanted: dict[str, Thresholds] = {name: getattr(policy, name) for name in type(policy).model_fields}
    if missing := sorted(wanted.keys() - scores.keys()):
        raise ValueError(f"nothing says how {' and '.join(missing)} {of} is")
    return [judge(of, name, scores[name], thresholds) for name, thresholds in wanted.items()]


def judge_pairs(rules: Iterable[PairRule], words: str, nearest: Sequence[Hit]) -> list[Judgement]:
    """What a picture and words come to together.

    Args:
        rules: of the policy.
        words: that come with the picture.
        nearest: indexed pictures, with the cosines of their embeddings with the picture's.
    """
    found: list[Judgement] = []
    for rule in rules:
        spoken = re.search(rule.words, words, re.IGNORECASE) is not None
        found.append(judge("pair", rule.name, shown(rule, nearest) if spoken else 0.0, rule.thresholds))
    return found


def shown(rule: PairRule, nearest: Sequence[Hit]) -> float:
    """How much of what a picture is near to says what the rule names, from 0 to 1."""
    if not nearest:
        return 0.0
    most = max(hit.score for hit in nearest)
    weights = [exp(SHARPNESS * (hit.score - most)) for hit in nearest]
    says = [bool(re.search(rule.picture, f"{hit.caption} {hit.category}", re.IGNORECASE)) for hit in nearest]
    return min(1.0, sum(w for w, yes in zip(weights, says, strict=True) if yes) / sum(weights))


def verdict(judgements: Sequence[Judgement]) -> Verdict:
    """The strictest of judgements; without any, what there is may pass."""
    strictest: Action = "allow"
    for one in judgements:
        if ORDER[one.action] > ORDER[strictest]:
            strictest = one.action
    return Verdict(action=strictest, judgements=list(judgements))


def remarks(judgements: Iterable[Judgement]) -> tuple[Judgement, ...]:
    """Those that say more than that something may pass."""
    return tuple(one for one in judgements if one.action != "allow")


def blocks(judgements: Iterable[Judgement]) -> tuple[Judgement, ...]:
    """Those that let nothing pass."""
    return tuple(one for one in judgements if one.action == "block")


def explain(judgements: Iterable[Judgement]) -> str:
    """Judgements for people: what, why and by how much."""
    return "; ".join(
        f"{NAMES[one.of]}: {one.category} {one.score:.2f}"
        + (f", {one.action} from {one.threshold:g}" if one.threshold is not None else "")
        for one in judgements
    )


NAMES: Mapping[Judged, str] = {
    "text": "the text",
    "image": "the picture",
    "speech": "the speech",
    "pair": "picture and words together",
    "output": "the answer",
}
