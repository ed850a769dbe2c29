"""The Ray Serve application: replicas of a whole model, or of encoder and decoder each by itself."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.datastructures import Headers
from starlette.types import ASGIApp

from ...pipelines.assessing.spec import Assessment
from ...pipelines.bundle import BundleInfo, LoadedBundle, Modality, read_info
from ...pipelines.index import Hit
from ...pipelines.providers import Choice
from ...pipelines.spec import Form
from ...workflows.spec import Spec
from .answering import Answered, Decoder, Parts
from .auditing import AuditLog
from .autoscaling import ARRIVALS, CAPACITY, autoscaling_config, mixed
from .batching import Encoded, Encoder, Observed, Transcript
from .closing import close_to_other_machines
from .decoding import Piece, Sampling
from .drift import DriftResponse
from .ingress import build_api
from .messages import AssessRequest, Health, Input, Refusal, refusal
from .moderating.models import Nudity, Texts
from .moderating.moderator import Moderator
from .moderating.moderator import check as check_moderation
from .multiplexing import Shelf
from .releases import Release, Releases
from .rpc import Called, environment
from .spec import ServingOptions
from .switching import Switch, Tally
from .tokens import Access, TokenFolder
from .tracing import current

Opens: TypeAlias = Callable[[Path, Form | None], LoadedBundle]
"""Opens the bundle in a folder, with graphs of a form."""
CHECKED_EVERY_S = 1.0
"""Seconds between two times that a replica is asked whether it is well; one that died is replaced then."""


class State(Spec):
    """What a running application says of itself, so that deploying the same again changes nothing."""

    options: ServingOptions
    releases: Releases
    """What it was told to serve."""
    serves: str
    """Digest of the live bundle that answers."""
    problem: str = ""
    """Why that isn't what it was told."""


class Together:
    """Encoder and decoder in the process that speaks HTTP: no call goes to another one.

    Args:
        encoder: of this replica.
        decoder: of this replica; None where the model doesn't answer.
    """

    def __init__(self, encoder: Encoder, decoder: Decoder | None) -> None:
        self._encoder, self._decoder = encoder, decoder
        self.embed, self.search = encoder.embed, encoder.search
        self.encode, self.transcribe, self.observe = encoder.encode, encoder.transcribe, encoder.observe
        self.drift, self.classify, self.assess = encoder.drift, encoder.classify, encoder.assess

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
        return await _answer(self._encoder.embed.remote(query, trace=current()), "encoder")

    async def search(self, query: Input, top_k: int) -> list[Hit] | Refusal:
        """Rank the indexed pictures."""
        return await _answer(self._encoder.search.remote(query, top_k, trace=current()), "encoder")

    async def encode(self, queries: Sequence[Input], neighbours: int | None = None) -> Encoded | Refusal:
        """Encode one input of each of some modalities."""
        return await _answer(
            self._encoder.encode_apart.remote(queries, neighbours, trace=current()), "encoder"
        )

    async def observe(self, queries: Sequence[Input], neighbours: int) -> Observed | Refusal:
        """Find out about inputs what moderation asks."""
        return await _answer(self._encoder.observe.remote(queries, neighbours, trace=current()), "encoder")

    async def classify(self, query: Input) -> NDArray[np.float32] | Refusal:
        """Probabilities of a picture's categories (K,)."""
        return await _answer(self._encoder.classify.remote(query, trace=current()), "encoder")

    async def assess(self, request: AssessRequest) -> Assessment | Refusal:
        """Assess a document, a picture or a volume."""
        return await _answer(self._encoder.assess.remote(request, trace=current()), "encoder")

    async def transcribe(self, data: bytes) -> Transcript | Refusal:
        """Make a text of encoded speech."""
        return await _answer(self._encoder.transcribe.remote(data, trace=current()), "encoder")

    async def drift(self) -> DriftResponse | Refusal:
        """How far what an encoder was asked lies from what was trained on."""
        return await _answer(self._encoder.drift.remote(), "encoder")

    async def answer(self, parts: Parts, question: str, sampling: Sampling) -> Answered | Refusal:
        """Answer, all at once."""
        assert self._decoder is not None
        told = self._decoder.answer.remote(parts, question, sampling, trace=current())
        return await _answer(told, "decoder")

    async def stream(
        self, parts: Parts, question: str, sampling: Sampling
    ) -> AsyncGenerator[Piece | Answered | Refusal]:
        """Tell an answer's tokens as they are found, and then the whole."""
        assert self._decoder is not None
        handle = self._decoder.options(stream=True)
        told = handle.stream.remote(parts, question, sampling, trace=current())
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


class Model(Called):
    """The deployment that is asked and holds the whole model: as many replicas as the load needs.

    What it serves is told by `reconfigure`, also while it runs: a bundle is opened and warmed up beside the
    one that answers, then requests go to it, and the old one is let go once it has answered its last.

    Args:
        options: how to serve.
        open_bundle: opens a bundle where the replica runs.
    """

    def __init__(self, options: ServingOptions, open_bundle: Opens) -> None:
        close_to_other_machines()
        self._options, self._open_bundle = options, open_bundle
        self._access, self._audit = _access(options), _audit(options)
        self._shelf = Shelf(self._open, options.open_beside, self._may_open)
        self.api = self._switch = Switch(self._shelf)
        self.only_here = options.is_here
        self._lines: dict[str, _Line] = {}
        self._releases: Releases | None = None
        self._problem = ""

    def __serve_build_asgi_app__(self) -> Switch:
        """The ASGI application."""
        return self._switch

    async def reconfigure(self, told: dict[str, Any]) -> None:
        """Serve what is told; a replica that already serves goes on with that if it can't."""
        releases = Releases.model_validate(told)
        wanted = [one for one in (releases.live, releases.candidate) if one is not None]
        opened: list[_Line] = []
        try:
            for one in wanted:
                if one.bundle not in self._lines:
                    opened.append(await asyncio.to_thread(self._open, one))
                    self._lines[one.bundle] = opened[-1]
        except Exception as error:
            for line in opened:
                line.close()
            if not self._switch.bundles:
                raise
            self._problem = f"{type(error).__name__}: {error}"
        else:
            self._problem = ""
            lines = [self._lines[one.bundle] for one in wanted]
            self._switch.turn(lines[0], lines[1] if len(lines) > 1 else None, releases.trial)
            await self._shelf.put(releases.beside)
        self._releases = releases
        self._lines = {name: line for name, line in self._lines.items() if name in self._switch.bundles}

    def state(self) -> State:
        """Say what is served, to whoever deploys next."""
        assert self._releases is not None
        live = self._switch.live.bundle
        return State(options=self._options, releases=self._releases, serves=live, problem=self._problem)

    def tallies(self) -> dict[str, Tally]:
        """See `Switch`."""
        return self._switch.tallies

    def batch_sizes(self) -> dict[Modality, dict[int, int]]:
        """See `Encoder`."""
        return self._live.encoder.batch_sizes()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Tell Serve's autoscaler what came lately to the bundle that is live, and to those beside."""
        lines = (self._live, *self._shelf.lines)
        return mixed(line.together.record_autoscaling_stats() for line in lines)

    @property
    def _live(self) -> _Line:
        return self._lines[self._switch.live.bundle]

    async def _may_open(self, headers: Headers) -> bool:
        """Whether whoever asks has a token, if one must have one."""
        if self._access is None:
            return True
        await self._access.keep_fresh()
        return self._access.known(headers.get("authorization")) is not None

    def _open(self, release: Release) -> _Line:
        return _Line(release, self._options, self._access, self._audit, self._open_bundle)


class _Line:
    """A bundle in memory, with all that answers from it (`switching.Line`)."""

    def __init__(
        self,
        release: Release,
        options: ServingOptions,
        access: Access | None,
        audit: AuditLog | None,
        open_bundle: Opens,
    ) -> None:
        bundle = open_bundle(Path(release.folder), options.form)
        choice = _accelerate(bundle, options)
        size, limits = options.max_batch_size, options.limits
        self.bundle = release.bundle
        pictures = _pictures(options)
        self.encoder = Encoder(lambda: bundle, size, limits, options.decoding_processes, pictures)
        answers = bundle.info.decoding is not None
        decoder = Decoder(lambda: bundle, size, self.encoder.computing) if answers else None
        self.together = Together(self.encoder, decoder)
        health = describe(bundle.info, release.bundle, options, choice.line)
        moderator = _moderator(options, bundle.info)
        self.api: ASGIApp = build_api(self.together, health, options, access, audit, moderator)

    def close(self) -> None:
        """End its processes."""
        self.encoder.close()


class Front(Called):
    """The deployment that is asked, before encoders and decoders that are deployments of their own.

    Args:
        options: how to serve.
        releases: what is served; another bundle needs other replicas.
        encoder, decoder: see `Apart`.
    """

    def __init__(
        self,
        options: ServingOptions,
        releases: Releases,
        encoder: Any,  # noqa: ANN401 - Serve's handle
        decoder: Any | None,  # noqa: ANN401 - Serve's handle
    ) -> None:
        close_to_other_machines()
        self._state = State(options=options, releases=releases, serves=releases.live.bundle)
        self._replicas = Apart(encoder, decoder)
        self.only_here = options.is_here

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Build the FastAPI application in the replica, where the handles live."""
        live, options = self._state.releases.live, self._state.options
        info = read_info(Path(live.folder))
        health, moderator = describe(info, live.bundle, options), _moderator(options, info)
        self.api = build_api(self._replicas, health, options, _access(options), _audit(options), moderator)
        return self.api

    def state(self) -> State:
        """Say what is served, to whoever deploys next."""
        return self._state


def describe(info: BundleInfo, digest: str, options: ServingOptions, runs_on: str = "") -> Health:
    """Say what answers, when a bundle is served with `options` by a process that runs graphs on that."""
    return Health(
        status="ok",
        bundle=digest,
        embed_dim=info.embed_dim,
        answers=info.decoding is not None,
        asks=info.decoding is not None and info.decoding.asks,
        form=options.form,
        runs_on=runs_on,
        transcribes=info.transcribes,
        classes=info.classes if info.classifies else (),
        embeds=info.embeds,
        assesses=info.assesses,
        moderates=options.moderation is not None,
        fit=info.preparation.fit,
        shown=info.preparation.image_size / info.preparation.stored_image_size,
        application=options.application,
    )


def build_application(releases: Releases, options: ServingOptions, open_bundle: Opens) -> serve.Application:
    """Bind the deployments.

    Args:
        releases: what is served.
        options: batching, autoscaling, limits.
        open_bundle: opens a bundle where a replica runs.
    """
    limits, size = options.limits, options.max_batch_size
    works: dict[str, Any] = {"num_cpus": options.cpus_per_replica}
    # of what speaks gRPC, whose server Serve sets up by its environment
    speaks: dict[str, Any] = (
        {"runtime_env": {"env_vars": environment(limits.max_body_bytes)}} if options.grpc_port else {}
    )
    watched: dict[str, Any] = {
        "graceful_shutdown_timeout_s": limits.request_timeout_s,
        "health_check_period_s": CHECKED_EVERY_S,
        "max_surge_percent": 100,  # a replica goes on until its successor is ready
    }
    scaled: dict[str, Any] = watched | {
        "autoscaling_config": autoscaling_config(options.autoscaling),
        "max_queued_requests": limits.max_queued_requests,
        "max_constructor_retry_count": 2,
    }
    most = 2 * limits.max_queued_requests  # so that whoever is refused, is refused by the interface
    if not options.apart:
        whole: Any = serve.deployment(
            serve.ingress()(Model),
            name="Model",
            user_config=releases.model_dump(mode="json"),
            ray_actor_options=works | speaks,
            max_ongoing_requests=most,
            **scaled,
        )
        # of the same version only the configuration changes, in place; Serve has no public way to say so
        return whole.options(version=_version(options), _internal=True).bind(options, open_bundle)
    folder = Path(releases.live.folder)
    opened = partial(_open_closed, open_bundle, folder, options)

    def replicated(kind: type[Any], *arguments: object) -> Any:  # noqa: ANN401 - Serve's
        # a replica holds one batch that runs and one that gathers; fewer would starve the batches
        deployment: Any = serve.deployment(
            kind, name=kind.__name__, ray_actor_options=works, max_ongoing_requests=2 * size, **scaled
        )
        return deployment.bind(opened, *arguments)

    front: Any = serve.deployment(
        serve.ingress()(Front),
        name="Front",
        ray_actor_options={"num_cpus": 0} | speaks,  # like Serve's own proxy: it waits more than it works
        max_ongoing_requests=most,
        **watched,
    )
    decoder = replicated(Decoder, size) if read_info(folder).decoding is not None else None
    encoder = replicated(Encoder, size, limits, options.decoding_processes, _pictures(options))
    return front.bind(options, releases, encoder, decoder)


def _access(options: ServingOptions) -> Access | None:
    if options.tokens is None:
        return None
    access = Access(TokenFolder(options.tokens).all)
    access.refresh()  # before a request comes, and not beside it
    return access


def _audit(options: ServingOptions) -> AuditLog | None:
    return None if options.audit is None else AuditLog(Path(options.audit))


def _open_closed(open_bundle: Opens, folder: Path, options: ServingOptions) -> LoadedBundle:
    """Open a bundle in a replica that speaks no HTTP."""
    close_to_other_machines()
    bundle = open_bundle(folder, options.form)
    _accelerate(bundle, options)
    return bundle


def _accelerate(bundle: LoadedBundle, options: ServingOptions) -> Choice:
    engines = None if options.engines is None else Path(options.engines)
    return bundle.accelerate(options.accelerator, engines, options.max_batch_size)


def _moderator(options: ServingOptions, bundle: BundleInfo) -> Moderator | None:
    """What judges, if anything does; a bundle that can't be judged as the policy says isn't served."""
    if options.moderation is None:
        return None
    check_moderation(options.moderation, bundle)
    return Moderator(options.moderation, _texts())


def _pictures(options: ServingOptions) -> Callable[[], Nudity] | None:
    """What an encoder scores pictures with, if the policy asks for that."""
    return None if options.moderation is None or options.moderation.image is None else _nudity


@cache  # of a process, whichever bundles it opens
def _texts() -> Texts:
    return Texts()


@cache
def _nudity() -> Nudity:
    return Nudity()


def _version(options: ServingOptions) -> str:
    """Of the replicas: what they are made of, but for the bundle, which they can change."""
    digest = hashlib.sha256(options.model_dump_json().encode())
    package = Path(__file__).parents[2]
    for part in ("actors/serving", "pipelines", "workflows"):
        for path in sorted((package / part).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


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
