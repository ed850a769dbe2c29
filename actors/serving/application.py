"""The Ray Serve application: one ingress over replicas of the encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from ...pipelines.bundle import Hit, LoadedBundle, read_info
from .autoscaling import autoscaling_config
from .batching import Encoder
from .ingress import build_api
from .messages import Health, Input, Refusal, refusal
from .spec import LimitsSpec, ServingOptions
from .tokens import Access, TokenFolder


class Served(Health):
    """What a running application says of itself, so that deploying the same again changes nothing."""

    options: str
    """Digest of the serving options."""
    route_prefix: str
    """Path that its routes stand below."""


class Replicas:
    """Calls the encoder through Serve's router; overload and loss come back as refusals.

    Args:
        handle: Serve's handle of the encoder.
    """

    def __init__(self, handle: Any) -> None:  # noqa: ANN401 - Serve's handles take any method name
        self._handle = handle

    async def embed(self, query: Input) -> NDArray[np.float32] | Refusal:
        """Embed one input (E,)."""
        return await _answer(self._handle.embed.remote(query))

    async def search(self, query: Input, top_k: int) -> list[Hit] | Refusal:
        """Rank the indexed pictures."""
        return await _answer(self._handle.search.remote(query, top_k))


class Ingress:
    """The deployment that speaks HTTP.

    Args:
        encoder: Serve's handle of the encoder.
        served: what this application is.
        limits: what a request may ask for.
        tokens: where those lie that requests must have; None lets anyone ask.
    """

    def __init__(self, encoder: Any, served: Served, limits: LimitsSpec, tokens: str | None) -> None:  # noqa: ANN401 - as above
        self._encoder = encoder
        self._served = served
        self._limits = limits
        self._access = None if tokens is None else Access(TokenFolder(tokens).all)

    def served(self) -> Served:
        """Say what is served, to whoever deploys next."""
        return self._served

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Build the FastAPI application in the replica, where the handle lives."""
        health = Health(**self._served.model_dump(exclude={"options", "route_prefix"}))
        return build_api(Replicas(self._encoder), health, self._limits, self._access)


def describe(folder: Path, digest: str, options: ServingOptions) -> Served:
    """Say what serving the bundle in `folder` with `options` amounts to."""
    chosen = options.model_dump_json(include=set(ServingOptions.model_fields) - {"ready_timeout_s"})
    return Served(
        status="ok",
        bundle=digest,
        embed_dim=read_info(folder).embed_dim,
        application=options.application,
        options=hashlib.sha256(chosen.encode()).hexdigest(),
        route_prefix=options.route_prefix,
    )


def build_application(
    served: Served, options: ServingOptions, open_bundle: Callable[[], LoadedBundle]
) -> serve.Application:
    """Bind the two deployments.

    Args:
        served: what the ingress says of itself.
        options: batching, autoscaling, limits.
        open_bundle: opens the bundle where a replica runs.
    """
    batching, scaling, limits = options.batching, options.autoscaling, options.limits
    # A replica holds one batch that runs and one that gathers; fewer would starve the batches.
    ongoing = 2 * batching.max_batch_size
    encoder: Any = serve.deployment(
        Encoder,
        name="Encoder",
        ray_actor_options={"num_cpus": options.cpus_per_replica},
        max_ongoing_requests=ongoing,
        max_queued_requests=limits.max_queued_requests,
        autoscaling_config=autoscaling_config(scaling),
        graceful_shutdown_timeout_s=limits.request_timeout_s,
        max_constructor_retry_count=2,
    )
    ingress: Any = serve.deployment(
        serve.ingress()(Ingress),
        name="Ingress",
        ray_actor_options={"num_cpus": 0},  # like Serve's own proxy: it waits more than it works
        max_ongoing_requests=2 * limits.max_queued_requests,
        graceful_shutdown_timeout_s=limits.request_timeout_s,
    )
    replicas = encoder.bind(open_bundle, batching, options.decoding_threads)
    return ingress.bind(replicas, served, limits, options.tokens)


async def _answer(response: Awaitable[Any]) -> Any:  # noqa: ANN401 - the callers know
    try:
        return await response
    except BackPressureError:
        return refusal(
            503,
            "overloaded",
            "all encoders are busy and their queue is full",
            "try again shortly",
            retry_after_s=1,
        )
    except (DeploymentUnavailableError, RayActorError):
        return refusal(
            503, "encoder-lost", "the encoder stopped while it worked", "try again shortly", retry_after_s=1
        )
