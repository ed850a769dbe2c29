"""Stages that do as they are asked: speak, hold on, die, or fail in each of several ways."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any, Literal

import eagleray
from eagleray.workflows.artifacts import Corpus, Report
from eagleray.workflows.errors import EaglerayError
from eagleray.workflows.spec import Runtime, StageSpec
from eagleray.workflows.stage import StageContext, stage


class UnpicklableError(Exception):
    """Can't be sent anywhere."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


class TrialSpec(StageSpec):
    kind: Literal["trial"] = "trial"
    do: Literal["speak", "die", "refuse", "pass", "break", "unpicklable", "exit", "nested"] = "speak"
    times: int = 3
    hold_until: str = Runtime("")


def refuse() -> None:
    raise EaglerayError("the picture is round", "cut it")


def act(ctx: StageContext, spec: TrialSpec) -> dict[str, Any]:
    with (ctx.cache / "attempts").open("a") as log:
        log.write(f"{ctx.stage} {os.getpid()}\n")
    for step in range(1, spec.times + 1):
        ctx.progress(step, spec.times, loss=1 / step)
    while spec.hold_until and not Path(spec.hold_until).exists():
        time.sleep(0.02)
    match spec.do:
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "refuse":
            raise EaglerayError("the picture is square", "give it corners", "stages.first")
        case "pass":
            raise EaglerayError("the line is busy", "try later", retryable=True)
        case "break":
            raise ValueError("a number was odd")
        case "unpicklable":
            raise UnpicklableError("it holds a lock")
        case "exit":
            raise SystemExit(3)
        case "nested":
            import ray  # `eagleray plan` must not load it

            ray.get(ray.remote(refuse).remote())
        case _:
            (ctx.output / "text.txt").write_text("spoken")
    return {"pid": os.getpid(), "file": str(eagleray.__file__), "times": spec.times}


@stage(TrialSpec, gives=Corpus)
def trial(ctx: StageContext, spec: TrialSpec) -> dict[str, Any]:
    """Do as asked."""
    return act(ctx, spec)


class CopySpec(TrialSpec):
    kind: Literal["copy"] = "copy"


@stage(CopySpec, takes={"corpus": Corpus}, gives=Report)
def copy(ctx: StageContext, spec: CopySpec, corpus: Corpus) -> dict[str, Any]:
    """Do as asked, after another."""
    return act(ctx, spec)
