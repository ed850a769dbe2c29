"""Which number format each layer computes in, and when that changes.

Weights, their gradients' sums and the optimizer are fp32 whatever a layer computes in (mixed precision,
arXiv 1710.03740, section 3). In fp16 small gradients vanish, so the loss is scaled up, as far
as no gradient overflows (3.2 there). `decide` is what changes formats while a model is trained: a pure
function of what was seen of each layer, the same on every worker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict

from .spec import PrecisionControlSpec

Format = Literal["bf16", "fp16", "fp32", "fp64"]
PREFERRED: Sequence[Format] = ("bf16", "fp16", "fp32")
"""A layer gets the first that serves: bf16 has fp32's range, fp16 is 8 times as fine, fp32 costs twice."""
DTYPES: Mapping[Format, torch.dtype] = dict(
    zip(get_args(Format), (torch.bfloat16, torch.float16, torch.float32, torch.float64), strict=True)
)
SMALLEST = torch.finfo(torch.float16).smallest_normal
"""Below this, fp16 loses digits."""
GROWS_EVERY = 200
"""Steps without overflow after which the loss is scaled up twice as far."""
MAX_SCALE = 2.0**24


@dataclass(frozen=True)
class Signals:
    """What was seen of a layer at a step, over all workers.

    Attributes:
        overflowed: whether a gradient was not finite.
        underflow: share of its gradient's entries, zeros apart, that fp16 has too few digits for.
        update: size of the optimizer's update over that of the weights, both as root of the mean square.
    """

    overflowed: bool = False
    underflow: float = 0.0
    update: float = 1.0


class Change(BaseModel):
    """A layer's move to another format.

    Attributes:
        step: after which it was decided.
        layer: path in the model.
        before: its format until then.
        after: its format from then on.
        why: for people.
    """

    model_config = ConfigDict(frozen=True)

    step: int
    layer: str
    before: Format
    after: Format
    why: str


class PrecisionState(BaseModel):
    """All that the controller knows; part of a checkpoint.

    Attributes:
        formats: layer → what it computes in.
        scale: of the loss.
        good_steps: steps since that changed.
        calm: layer → decisions in a row in which a format that is preferred would have served.
        barred: layers that have overflowed in fp16.
        changes: every move so far.
    """

    formats: dict[str, Format]
    scale: float = 1.0
    good_steps: int = 0
    calm: dict[str, int] = {}
    barred: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()

    @property
    def is_scaled(self) -> bool:
        """Whether some layer computes in fp16."""
        return "fp16" in self.formats.values()


def weights_dtype(precision: str) -> torch.dtype:
    """Of weights, gradients and the optimizer's state, whatever layers compute in."""
    return torch.float64 if precision == "fp64" else torch.float32


def first_state(layers: Sequence[str], precision: str, control: PrecisionControlSpec) -> PrecisionState:
    """What a training starts from."""
    start = {"dynamic": control.start, "fp8": "bf16"}.get(precision, precision)
    formats: dict[str, Format] = {layer: start for layer in layers}  # pyright: ignore[reportAssignmentType]
    return PrecisionState(formats=formats, scale=control.loss_scale if start == "fp16" else 1.0)


def scale_after(state: PrecisionState, overflowed: bool) -> PrecisionState:
    """The loss's scale after a step: half of it after an overflow, twice as much after many without one."""
    if not state.is_scaled:
        return state.model_copy(update={"scale": 1.0, "good_steps": 0})
    if overflowed:
        return state.model_copy(update={"scale": max(1.0, state.scale / 2), "good_steps": 0})
    if state.good_steps + 1 < GROWS_EVERY:
        return state.model_copy(update={"good_steps": state.good_steps + 1})
    return state.model_copy(update={"scale": min(MAX_SCALE, state.scale * 2), "good_steps": 0})


def escape(state: PrecisionState, step: int, overflowed: Sequence[str]) -> PrecisionState:
    """Take layers out of fp16 that a smaller scale does not help.

    Args:
        state: before.
        step: steps done.
        overflowed: those whose gradient was not finite, or all, where the loss itself was not.
    """
    out = [layer for layer in overflowed if state.formats.get(layer) == "fp16"]
    why = "its values overflow fp16, whatever the loss's scale"
    changes = [Change(step=step, layer=layer, before="fp16", after="bf16", why=why) for layer in out]
    barred = tuple(sorted({*state.barred, *out}))
    return _changed(state.model_copy(update={"barred": barred}), changes)


def decide(
    state: PrecisionState, step: int, seen: Mapping[str, Signals], control: PrecisionControlSpec
) -> PrecisionState:
    """Give each layer the first of `PREFERRED` that serves it.

    A format serves as long as what is changed in a step is not lost in its rounding, and fp16 only as long as
    gradients fit. What no longer serves is left at once; back goes only who would be served with room to
    spare, several times in a row.
    """
    changes: list[Change] = []
    calm = dict(state.calm)
    for layer, signals in seen.items():
        now = state.formats[layer]
        needs: dict[Format, str] = {
            fmt: _lacks(fmt, signals, control, 1.0, layer in state.barred) for fmt in PREFERRED
        }
        if why := needs[now]:
            calm[layer] = 0
            after: Format = next(fmt for fmt in PREFERRED if not needs[fmt])
            changes.append(Change(step=step, layer=layer, before=now, after=after, why=why))
            continue
        better: list[Format] = [
            fmt
            for fmt in PREFERRED[: PREFERRED.index(now)]
            if not _lacks(fmt, signals, control, control.margin, layer in state.barred)
        ]
        calm[layer] = calm.get(layer, 0) + 1 if better else 0
        if better and calm[layer] >= control.patience:
            calm[layer] = 0
            why = f"{better[0]} would have served {control.patience} times in a row"
            changes.append(Change(step=step, layer=layer, before=now, after=better[0], why=why))
    decided = _changed(state.model_copy(update={"calm": calm}), changes)
    scale = control.loss_scale if decided.is_scaled and not state.is_scaled else decided.scale
    return decided.model_copy(update={"scale": scale})


def _lacks(fmt: Format, seen: Signals, control: PrecisionControlSpec, margin: float, barred: bool) -> str:
    """Why a format does not serve a layer; empty if it does."""
    if fmt == "fp32":
        return ""
    if fmt == "fp16" and (barred or seen.overflowed):
        return "its gradient overflows fp16"
    if fmt == "fp16" and seen.underflow * margin > control.max_underflow:
        return f"{seen.underflow:.1%} of its gradient underflows fp16"
    ratio = seen.update / torch.finfo(DTYPES[fmt]).eps
    if ratio < control.min_update * margin:
        return f"an update is {ratio:.3f} of {fmt}'s rounding"
    return ""


def _changed(state: PrecisionState, changes: Sequence[Change]) -> PrecisionState:
    formats = state.formats | {change.layer: change.after for change in changes}
    return state.model_copy(update={"formats": formats, "changes": (*state.changes, *changes)})
