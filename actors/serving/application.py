"""The Ray Serve application: replicas of a whole model, or of encoder and decoder each by itself."""

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

from ...pipelines.bundle import Hit, LoadedBundle, Modality, read_info
from .answering import Answered, Decoder, Parts
from .autoscaling import ARRIVALS, CAPACITY, autoscaling_config
from .batching import Encoded, Encoder, Transcript
from .decoding import Piece, Sampling
from .ingress import build_api
from .messages import Health, Input, Refusal, refusal
from .model import Replicas
from .spec import LimitsSpec, ServingOptions
from .tokens import Access, TokenFolder


class Served(Health):
    """What a running application says of itself, so that deploying the same again changes nothing."""

    options: str
    """Digest of the serving options."""
    route_prefix: str
    """Path that its routes stand below."""


class Together:
    """Encoder and decoder in the process that speaks HTTP: no call goes to another one.

    Args:
        encoder: of this replica.
        decoder: of this replica; None where the model doesn't answer.
    """

    def __init__(self, encoder: Encoder, decoder: Decoder | None) -> None:
        self._encoder, self._decoder = encoder, decoder
        self.embed, self.search = encoder.embed, encoder.search
        self.encode, self.transcribe = encoder.encode, encoder.transcribe

    async def answer(self, parts: Parts, question: str, sampling: Sampling) -> Answered | Refusal:
        """Answer, all at once."""
        assert self._decoder is not None
        return await self._decoder.answer(parts, question, sampling)

    def stream(
        self, parts: Parts, question: str, sampling: Sampling
    ) -> AsyncGenerator[Piece | Answered | Refusal]:
        """Tell an answer's tokens as they are found, and then the whole."""
        assert self._decoder is not None
        return self._decoder.stream(parts, question, sampling)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Tell Serve's autoscaler what inputs came lately, and could have, each with its share of answers."""
        encoded = self._encoder.record_autoscaling_stats()
        if self._decoder is None:
            return encoded
        answered = self._decoder.record_autoscaling_stats()
        share = answered[ARRIVALS] / encoded[ARRIVALS] if encoded[ARRIVALS] else 1.0
        seconds = 1 / encoded[CAPACITY] + share / answered[CAPACITY]
        return {ARRIVALS: encoded[ARRIVALS], CAPACITY: 1 / seconds}


class Apart:
    """Calls encoders and decoders through Serve's router; overload and loss come back as refusals.

    Args:
        encoder: Serve's handle of the encoders.
        decoder: of the decoders; None where the model doesn't answer.
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
    """The deployment that speaks HTTP, over replicas of its own process or of deployments of their own.

    Args:
        served: what this application is.
        limits: what a request may ask for.
        tokens: where those lie that requests must have; None lets anyone ask.
    """

    def __init__(self, served: Served, limits: LimitsSpec, tokens: str | None, replicas: Replicas) -> None:
        self._served = served
        self._limits = limits
        self._access = None if tokens is None else Access(TokenFolder(tokens).all)
        self._replicas = replicas

    def served(self) -> Served:
        """Say what is served, to whoever deploys next."""
        return self._served

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Build the FastAPI application in the replica, where the handles live."""
        health = Health(**self._served.model_dump(exclude={"options", "route_prefix"}))
        return build_api(self._replicas, health, self._limits, self._access)


class WholeModel(Ingress):
    """An ingress with encoder and decoder in one process: as many replicas as the load needs.

    Args:
        served, limits, tokens: see `Ingress`.
        open_bundle: opens the bundle where the replica runs.
        max_batch_size: rows that run together at the most.
        processes: that decode pictures and speech.
    """

    def __init__(
        self,
        served: Served,
        limits: LimitsSpec,
        tokens: str | None,
        open_bundle: Callable[[], LoadedBundle],
        max_batch_size: int,
        processes: int,
    ) -> None:
        bundle = open_bundle()
        self.encoder = Encoder(lambda: bundle, max_batch_size, limits, processes)
        decoder = Decoder(lambda: bundle, max_batch_size, self.encoder.computing) if served.answers else None
        self._together = Together(self.encoder, decoder)
        super().__init__(served, limits, tokens, self._together)

    def batch_sizes(self) -> dict[Modality, dict[int, int]]:
        """See `Encoder`."""
        return self.encoder.batch_sizes()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """See `Together`."""
        return self._together.record_autoscaling_stats()


class Front(Ingress):
    """An ingress before encoders and decoders that are deployments of their own.

    Args:
        served, limits, tokens: see `Ingress`.
        encoder, decoder: see `Apart`.
    """

    def __init__(
        self,
        served: Served,
        limits: LimitsSpec,
        tokens: str | None,
        encoder: Any,  # noqa: ANN401 - Serve's handle
        decoder: Any | None,  # noqa: ANN401 - Serve's handle
    ) -> None:
        super().__init__(served, limits, tokens, Apart(encoder, decoder))


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
    """Bind the deployments.

    Args:
        served: what the ingress says of itself.
        options: batching, autoscaling, limits.
        open_bundle: opens the bundle where a replica runs.
    """
    limits, size, processes = options.limits, options.max_batch_size, options.decoding_processes
    scaled: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": options.cpus_per_replica},
        "autoscaling_config": autoscaling_config(options.autoscaling),
        "max_queued_requests": limits.max_queued_requests,
        "graceful_shutdown_timeout_s": limits.request_timeout_s,
        "max_constructor_retry_count": 2,
    }
    most = 2 * limits.max_queued_requests  # so that whoever is refused, is refused by the interface
    if not options.apart:
        whole: Any = serve.deployment(
            serve.ingress()(WholeModel), name="Model", max_ongoing_requests=most, **scaled
        )
        return whole.bind(served, limits, options.tokens, open_bundle, size, processes)

    def replicated(kind: type[Any], *arguments: object) -> Any:  # noqa: ANN401 - Serve's
        # a replica holds one batch that runs and one that gathers; fewer would starve the batches
        deployment: Any = serve.deployment(kind, name=kind.__name__, max_ongoing_requests=2 * size, **scaled)
        return deployment.bind(open_bundle, *arguments)

    front: Any = serve.deployment(
        serve.ingress()(Front),
        name="Front",
        ray_actor_options={"num_cpus": 0},  # like Serve's own proxy: it waits more than it works
        max_ongoing_requests=most,
        graceful_shutdown_timeout_s=limits.request_timeout_s,
    )
    decoder = replicated(Decoder, size) if served.answers else None
    return front.bind(served, limits, options.tokens, replicated(Encoder, size, limits, processes), decoder)


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
