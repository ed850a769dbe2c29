"""The Ray Serve application: one ingress over replicas of the encoder and of the decoder."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from ...pipelines.bundle import Hit, LoadedBundle, read_info
from .answering import Answered, Decoder, Parts
from .autoscaling import autoscaling_config
from .batching import Encoded, Encoder, Transcript
from .decoding import Piece, Sampling
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


class ServedReplicas:
    """Calls the replicas through Serve's router; overload and loss come back as refusals.

    Args:
        encoder: Serve's handle of the encoder.
        decoder: of the decoder; None where the model doesn't answer.
    """

    def __init__(self, encoder: Any, decoder: Any | None) -> None:  # noqa: ANN401 - Serve's handles take any method name
        self._encoder, self._decoder = encoder, decoder

    async def embed(self, query: Input) -> NDArray[np.float32] | Refusal:
        """Embed one input (E,)."""
        return await _answer(self._encoder.embed.remote(query), "encoder")

    async def search(self, query: Input, top_k: int) -> list[Hit] | Refusal:
        """Rank the indexed pictures."""
        return await _answer(self._encoder.search.remote(query, top_k), "encoder")

    async def encode(self, queries: Sequence[Input]) -> Encoded | Refusal:
        """Encode one input of each of some modalities."""
        return await _answer(self._encoder.encode.remote(queries), "encoder")

    async def transcribe(self, data: bytes) -> Transcript | Refusal:
        """Make a text of encoded speech."""
        return await _answer(self._encoder.transcribe.remote(data), "encoder")

    async def answer(self, parts: Parts, question: str, sampling: Sampling) -> Answered | Refusal:
        """Answer, all at once."""
        assert self._decoder is not None
        return await _answer(self._decoder.answer.remote(parts, question, sampling), "decoder")

    async def stream(
        self, parts: Parts, question: str, sampling: Sampling
    ) -> AsyncGenerator[Piece | Answered | Refusal]:
        """Tell an answer's tokens as they are found, and then the whole."""
        assert self._decoder is not None
        told = self._decoder.options(stream=True).stream.remote(parts, question, sampling)
        try:
            while True:
                piece = await _answer(anext(told), "decoder")
                yield piece
                if isinstance(piece, Refusal):
                    return
        except StopAsyncIteration:
            return
        finally:
            told.cancel()


class Ingress:
    """The deployment that speaks HTTP.

    Args:
        encoder: Serve's handle of the encoder.
        decoder: of the decoder; None where the model doesn't answer.
        served: what this application is.
        limits: what a request may ask for.
        tokens: where those lie that requests must have; None lets anyone ask.
    """

    def __init__(
        self,
        encoder: Any,  # noqa: ANN401 - as above
        decoder: Any | None,  # noqa: ANN401 - as above
        served: Served,
        limits: LimitsSpec,
        tokens: str | None,
    ) -> None:
        self._replicas = ServedReplicas(encoder, decoder)
        self._served = served
        self._limits = limits
        self._access = None if tokens is None else Access(TokenFolder(tokens).all)

    def served(self) -> Served:
        """Say what is served, to whoever deploys next."""
        return self._served

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Build the FastAPI application in the replica, where the handle lives."""
        health = Health(**self._served.model_dump(exclude={"options", "route_prefix"}))
        return build_api(self._replicas, health, self._limits, self._access)


def describe(folder: Path, digest: str, options: ServingOptions) -> Served:
    """Say what serving the bundle in `folder` with `options` amounts to."""
    chosen = options.model_dump_json(include=set(ServingOptions.model_fields) - {"ready_timeout_s"})
    info = read_info(folder)
    return Served(
        status="ok",
        bundle=digest,
        embed_dim=info.embed_dim,
        answers=info.decoding is not None,
        asks=info.decoding is not None and info.decoding.asks,
        transcribes=info.transcribes,
        fit=info.preparation.fit,
        shown=info.preparation.image_size / info.preparation.stored_image_size,
        application=options.application,
        options=hashlib.sha256(chosen.encode()).hexdigest(),
        route_prefix=options.route_prefix,
    )


def build_application(
    served: Served, options: ServingOptions, open_bundle: Callable[[], LoadedBundle]
) -> serve.Application:
    """Bind the deployments: an ingress over encoders and, where the model answers, decoders.

    Args:
        served: what the ingress says of itself.
        options: batching, autoscaling, limits.
        open_bundle: opens the bundle where a replica runs.
    """
    scaling, limits = options.autoscaling, options.limits

    def replicated(kind: type[Any], *arguments: object) -> Any:  # noqa: ANN401 - Serve's
        deployment: Any = serve.deployment(
            kind,
            name=kind.__name__,
            ray_actor_options={"num_cpus": options.cpus_per_replica},
            # a replica holds one batch that runs and one that gathers; fewer would starve the batches
            max_ongoing_requests=2 * options.max_batch_size,
            max_queued_requests=limits.max_queued_requests,
            autoscaling_config=autoscaling_config(scaling),
            graceful_shutdown_timeout_s=limits.request_timeout_s,
            max_constructor_retry_count=2,
        )
        return deployment.bind(open_bundle, *arguments)

    encoder = replicated(Encoder, options.max_batch_size, options.decoding_threads)
    decoder = replicated(Decoder, options.max_batch_size) if served.answers else None
    ingress: Any = serve.deployment(
        serve.ingress()(Ingress),
        name="Ingress",
        ray_actor_options={"num_cpus": 0},  # like Serve's own proxy: it waits more than it works
        max_ongoing_requests=2 * limits.max_queued_requests,
        graceful_shutdown_timeout_s=limits.request_timeout_s,
    )
    return ingress.bind(encoder, decoder, served, limits, options.tokens)


async def _answer(response: Awaitable[Any], part: str) -> Any:  # noqa: ANN401 - the callers know
    try:
        return await response
    except BackPressureError:
        return refusal(
            503,
            "overloaded",
            f"all {part}s are busy and their queue is full",
            "try again shortly",
            retry_after_s=1,
        )
    except (DeploymentUnavailableError, RayActorError):
        return refusal(
            503, f"{part}-lost", f"the {part} stopped while it worked", "try again shortly", retry_after_s=1
        )
