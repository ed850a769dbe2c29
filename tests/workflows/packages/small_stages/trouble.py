"""A stage that goes wrong, or tells a secret, in the way it is asked to."""

from __future__ import annotations

import json
import sys
from typing import Any, Literal

import numpy as np

from eagleray.workflows.artifacts import Report
from eagleray.workflows.errors import EaglerayError
from eagleray.workflows.spec import StageSpec
from eagleray.workflows.stage import StageContext, stage


class TroubleSpec(StageSpec):
    kind: Literal["trouble"] = "trouble"
    token: str = ""
    how: Literal[
        "none", "log", "metric", "facts", "key", "file", "json", "name", "late",
        "error", "repr", "explained", "exit", "numpy", "flaky", "full",
    ] = "none"  # fmt: skip


@stage(TroubleSpec, gives=Report)
def trouble(ctx: StageContext, spec: TroubleSpec) -> dict[str, Any]:
    """Go wrong as asked."""
    token, out = spec.token, ctx.output
    (out / "length.txt").write_text(str(len(token)))
    match spec.how:
        case "log":
            ctx.log(f"signing in with {token}")
        case "metric":
            ctx.emit("progress", step=1, total=1, metrics={}, note=[{"deep": (token,)}])
        case "facts":
            return {"url": f"https://user:{token}@host/", "all": [token]}
        case "key":
            return {token: 1}
        case "file":
            (out / "config.txt").write_text(f"token={token}", encoding="utf-8")
        case "json":
            (out / "config.json").write_text(json.dumps({"token": token}))
        case "name":
            (out / token).write_text("")
        case "late":
            (out / "big.bin").write_bytes(b"\0" * ((1 << 20) - 3) + token.encode() + b"\0" * 100)
        case "error":
            raise ValueError(f"{token} was refused")
        case "repr":
            raise KeyError(token)
        case "explained":
            raise EaglerayError(f"{token} was refused", f"is {token} right?", f"https://{token}@host")
        case "exit":
            sys.exit(f"{token} was refused")
        case "numpy":
            ctx.progress(1, 2, loss=np.float32(0.5))
            return {"loss": np.float32(0.25), "rows": np.int64(3), "where": out.parent.joinpath("x").name}
        case "flaky":
            tries = ctx.scratch / "tries"
            with tries.open("a") as stream:
                stream.write(".")
            assert sorted(p.name for p in out.iterdir()) == ["length.txt"]
            (out / "left-over").write_text("")
            if len(tries.read_text()) < 3:
                raise ConnectionError("the line is bad")
            return {"tries": len(tries.read_text())}
        case "full":
            (out / "big").write_bytes(b"x" * (1 << 22))
        case "none":
            pass
    return {}
