"""Stage `serve`: a bundle answers over HTTP, as a Ray Serve application."""

from __future__ import annotations

import json
from typing import Any, Literal

from ...workflows.artifacts import Bundle, Deployment
from ...workflows.spec import StageSpec
from ...workflows.stage import StageContext, stage
from ..serving.spec import ServingOptions


class ServeSpec(StageSpec, ServingOptions):
    """Where and how the bundle is served."""

    kind: Literal["serve"] = "serve"


def reserved_cpus(spec: ServeSpec) -> float:
    """CPUs that must exist in the cluster: the stage's own task and the first encoder and decoder."""
    return spec.run.num_cpus + (1 + spec.apart) * spec.autoscaling.min_replicas * spec.cpus_per_replica


@stage(ServeSpec, takes={"bundle": Bundle}, gives=Deployment, cached=False, cpus=reserved_cpus)
def serve(ctx: StageContext, spec: ServeSpec, bundle: Bundle) -> dict[str, Any]:
    """Serve a bundle over HTTP, wait until it is healthy, and ask it one real question."""
    from ..serving.running import deploy

    deployed = deploy(bundle.path, spec, bundle.digest, ctx.log)
    ctx.log(
        f"{'already serving' if deployed.kept else 'serving'} at {deployed.url} (pages: {deployed.url}/docs)"
    )
    facts: dict[str, Any] = {
        "url": deployed.url,
        "grpc": deployed.grpc,
        "application": spec.application,
        "bundle": deployed.bundle,
        "kept": deployed.kept,
        "command": deployed.command,
        "request": deployed.request,
        "answer": deployed.answer,
    }
    (ctx.output / "deployment.json").write_text(json.dumps(facts, indent=2), encoding="utf-8")
    return facts
