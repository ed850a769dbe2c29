"""Stages over small text files: a corpus, two that read from it, and one done for its effect."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from eagleray.workflows.artifacts import Checkpoint, Corpus, Deployment, Report
from eagleray.workflows.errors import EaglerayError
from eagleray.workflows.spec import Runtime, Spec, StageSpec
from eagleray.workflows.stage import StageContext, stage


class Options(Spec):
    depth: int = Field(1, ge=1)
    lanes: int = Runtime(1, ge=1)


class Square(Spec):
    kind: Literal["square"] = "square"
    side: float = 1.0


class Circle(Spec):
    kind: Literal["circle"] = "circle"
    radius: float = 1.0


class WriteSpec(StageSpec):
    kind: Literal["write"] = "write"
    text: str = "abc"
    times: int = Field(1, ge=1, le=1000)
    ratio: float = 0.5
    shout: bool = False
    size: Literal["small", "large"] = "small"
    tags: tuple[str, ...] = ()
    limits: dict[str, int] = Field(default_factory=dict)
    options: Options = Options()
    shape: Square | Circle = Field(Square(), discriminator="kind")
    workers: int = Runtime(1, ge=1)
    outside: str = Runtime("")
    hold_until: str = Runtime("")

    @model_validator(mode="after")
    def _whole(self) -> WriteSpec:
        if self.shout and not self.text:
            raise ValueError("there is nothing to shout")
        return self


def _check(name: str, spec: WriteSpec) -> None:
    if spec.workers > 64:
        raise EaglerayError("no cluster has so many workers", "take fewer", name)


@stage(WriteSpec, gives=Corpus, outside=lambda spec, cache: spec.outside, check=_check)
def write(ctx: StageContext, spec: WriteSpec) -> dict[str, Any]:
    """Write a text, many times."""
    with (ctx.cache / "written").open("a") as log:
        log.write(f"{ctx.stage}\n")
    ctx.log(f"writing {spec.text}")
    ctx.progress(1, 1, letters=len(spec.text))
    while spec.hold_until and not Path(spec.hold_until).exists():
        time.sleep(0.01)
    (ctx.output / "text.txt").write_text(spec.text * spec.times, encoding="utf-8")
    return {"letters": len(spec.text) * spec.times}


class UpperSpec(StageSpec):
    kind: Literal["upper"] = "upper"
    hold_until: str = Runtime("")


@stage(UpperSpec, takes={"corpus": Corpus}, gives=Checkpoint, may_take={"before": Corpus})
def upper(ctx: StageContext, spec: UpperSpec, corpus: Corpus, before: Corpus | None = None) -> None:
    """Write a corpus's text in capitals, after another one's if there is any."""
    ctx.log(f"upper has begun, after {ctx.earlier()}")
    while spec.hold_until and not Path(spec.hold_until).exists():
        time.sleep(0.01)
    texts = [(one.path / "text.txt").read_text(encoding="utf-8") for one in (before, corpus) if one]
    text = "".join(texts)
    (ctx.output / "text.txt").write_text(text.upper(), encoding="utf-8")


class CompareSpec(StageSpec):
    kind: Literal["compare"] = "compare"


@stage(CompareSpec, takes={"corpus": Corpus, "checkpoint": Checkpoint}, gives=Report)
def compare(ctx: StageContext, spec: CompareSpec, corpus: Corpus, checkpoint: Checkpoint) -> dict[str, Any]:
    """Compare a text with its capitals."""
    old, new = ((one.path / "text.txt").read_text(encoding="utf-8") for one in (corpus, checkpoint))
    (ctx.output / "report.json").write_text("{}")
    return {"changed": sum(a != b for a, b in zip(old, new, strict=True))}


class AnnounceSpec(StageSpec):
    kind: Literal["announce"] = "announce"


@stage(AnnounceSpec, takes={"report": Report}, gives=Deployment, cached=False)
def announce(ctx: StageContext, spec: AnnounceSpec, report: Report) -> dict[str, Any]:
    """Announce a report in a folder that all runs share."""
    board = ctx.cache / "board"
    with board.open("a") as stream:
        stream.write(f"{ctx.run_id}\n")
    return {"announced": len(board.read_text().splitlines())}
