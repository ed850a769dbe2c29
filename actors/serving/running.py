"""Deploys bundles on the cluster's Ray Serve, waits for them, lists them, and stops them."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from ...pipelines.bundle import bundle_digest, load_bundle, read_info
from ...pipelines.spec import Form
from ...workflows.errors import EaglerayError
from .application import Opens, State, build_application
from .asking import ask, ask_golden, opener, own_token, wait_for_grpc
from .listening import (
    LOGGING,
    address_at,
    as_clients_reach,
    check_who_may_ask,
    find_listening,
    option,
    start_serve,
    url_at,
    url_of,
)
from .moderating.moderator import check as check_moderation
from .promoting import ask_both, golden, judge
from .releases import Release, Releases, Trial
from .spec import PromotionSpec, ServingOptions
from .switching import Tally
from .tls import read_pem

LONGEST_BODY = 2000
"""Characters of a sample request that are printed."""
_POLL_S = 0.25
_CALL_TIMEOUT_S = 10.0
_TRIAL_TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class Running:
    """An application that Ray Serve runs.

    Attributes:
        application: its name.
        status: Ray Serve's word for its state.
        url: where it answers.
        bundle: digest of what it serves; empty when it doesn't answer or is none of ours.
        replicas: deployment → replicas that run.
        message: what Ray Serve says about its state.
    """

    application: str
    status: str
    url: str
    bundle: str
    replicas: dict[str, int]
    message: str


@dataclass(frozen=True)
class Deployed:
    """A bundle that answers.

    Attributes:
        url: where.
        bundle: digest of what is served.
        kept: True when it already ran with the same options, and was left alone.
        path: of the sample request, below `url`.
        request: the sample request, as JSON.
        answer: its answer.
        asks_for_tokens: whether a request must have one.
        grpc: host:port where it answers over gRPC, if it does.
        trust: further words for curl, so that it trusts the certificate; empty without TLS.
    """

    url: str
    bundle: str
    kept: bool
    path: str
    request: dict[str, Any]
    answer: dict[str, Any]
    asks_for_tokens: bool = False
    grpc: str | None = None
    trust: str = ""

    @property
    def command(self) -> str:
        """The sample request as a shell command."""
        body = shlex.quote(json.dumps(self.request, ensure_ascii=False))
        if len(body) > LONGEST_BODY:  # of a picture or a scan
            body = "@request.json"
        token = ' -H "authorization: Bearer $TOKEN"' if self.asks_for_tokens else ""
        return (
            f"curl -s{self.trust} {self.url}{self.path}{token} -H 'content-type: application/json' -d {body}"
        )


def deploy(
    folder: Path,
    options: ServingOptions,
    digest: str | None = None,
    log: Callable[[str], None] = lambda message: None,
    open_bundle: Opens = load_bundle,
) -> Deployed:
    """Serve the bundle in `folder`, wait until it answers, and ask it one real question.

    An application that already serves the same digest with the same options is kept. One that serves another
    bundle changes to this one while it runs, if the options say so after a trial (see `promoting`).

    Args:
        folder: the bundle; every replica's machine must see it.
        options: how to serve it.
        digest: of the bundle as the artifact store knows it; by default that of its `bundle.json`.
        log: takes a line for people about each step.
        open_bundle: opens it where a replica runs.

    Raises:
        EaglerayError: when it can't be served, or isn't promoted; what was served before goes on.
    """
    # a damaged bundle stops here, before anything is replaced
    path, request = load_bundle(folder, options.form).sample
    release = Release(bundle=digest or bundle_digest(folder), folder=str(folder.absolute()))
    check_who_may_ask(options)
    if options.moderation is not None:
        check_moderation(options.moderation, read_info(folder))
    start_serve(options, read_pem(options.tls) if options.tls else None)
    beside = {name: _release(Path(where), options.form) for name, where in options.beside.items()}
    made_with, before = options.of_replicas, state_of(options.application)
    if before is None and options.promotion is not None and _is_listed(options.application):
        raise EaglerayError(
            "what is served doesn't say which bundle that is, so nothing can be tried beside it",
            "wait until `eagleray applications` calls it running, or leave `promotion` out",
            options.application,
        )
    releases = Releases(live=release) if before is None else before.releases.followed_by(release)
    releases = releases.model_copy(update={"beside": beside})
    is_other = before is not None and before.releases.live.bundle != release.bundle
    kept = before is not None and before.options == made_with and before.releases == releases
    if options.samples is not None:
        kept_in = f"{options.samples.folder} keeps {options.samples.share:.4g} of the requests"
        log(f"{kept_in}, with what was asked and answered")
    if not kept:
        log(f"deploying bundle {release.bundle[:12]} as {options.application}")
        if before is not None and is_other and options.promotion is not None:
            _try_out(before, release, options.promotion, log, options.ready_timeout_s, open_bundle)
        turn(made_with, releases, options.ready_timeout_s, open_bundle)
    deadline = time.monotonic() + options.ready_timeout_s
    url = url_of(options)
    with own_token(options, ("search", "assess"), options.ready_timeout_s) as token:
        answer = ask(opener(options), f"{url}{path}", request, token, release.bundle, deadline)
    url, trust = as_clients_reach(url, options)
    address = None
    if options.grpc_port is not None:
        address = address_at(options.host, options.grpc_port)
        wait_for_grpc(address, options.application, deadline)
    asks_for_tokens = options.tokens is not None
    return Deployed(url, release.bundle, kept, path, request, answer, asks_for_tokens, address, trust)


def _release(folder: Path, form: Form | None) -> Release:
    """A bundle that is whole."""
    load_bundle(folder, form)
    return Release(bundle=bundle_digest(folder), folder=str(folder))


def roll_back(application: str, log: Callable[[str], None] = lambda message: None) -> Running:
    """Serve again what an application served before, without a trial.

    Raises:
        EaglerayError: when nothing was, or it can't be served any more; what is served goes on.
    """
    before = None if find_listening() is None else state_of(application)
    if before is None:
        known = ", ".join(one.application for one in running() if one.bundle) or "none"
        raise EaglerayError(f"no application {application!r} of ours runs", f"running: {known}")
    if not before.releases.previous:
        raise EaglerayError(
            "nothing was served before this bundle", "serve another one: eagleray serve FOLDER", application
        )
    releases = before.releases.gone_back()
    load_bundle(Path(releases.live.folder), before.options.form)
    log(f"going back from bundle {before.releases.live.bundle[:12]} to {releases.live.bundle[:12]}")
    turn(before.options, releases, before.options.ready_timeout_s)
    (found,) = (one for one in running() if one.application == application)
    return found


def turn(
    options: ServingOptions,
    releases: Releases,
    ready_timeout_s: float,
    open_bundle: Opens = load_bundle,
) -> None:
    """Let an application serve `releases`, and wait until all its replicas do.

    Args:
        options: how.
        releases: what.
        ready_timeout_s: that they may take.
        open_bundle: see `deploy`.

    Raises:
        EaglerayError: when it can't; then it serves what it served before.
    """
    name = options.application
    before, is_new = state_of(name), not _is_listed(name)
    try:
        _run(options, releases, open_bundle)
        _wait_until_running(options, releases, ready_timeout_s, forget=is_new)
    except EaglerayError:
        if before is not None and before.options == options:
            _run(options, before.releases, open_bundle)
            _wait_until_running(options, before.releases, ready_timeout_s, forget=False)
        raise


def _run(options: ServingOptions, releases: Releases, open_bundle: Opens) -> None:
    application = build_application(releases, options, open_bundle)
    target = serve.RunTarget(application, options.application, options.route_prefix, LOGGING)
    try:
        serve.run_many([target], wait_for_applications_running=False)
    except RayServeException as error:  # another application has the prefix
        raise EaglerayError(
            str(error).strip().splitlines()[-1],  # before it, a traceback of Serve's controller
            f"choose another path: {option('route_prefix', '/NAME')}",
            options.application,
        ) from None


def _try_out(
    before: State,
    candidate: Release,
    spec: PromotionSpec,
    log: Callable[[str], None],
    ready_timeout_s: float,
    open_bundle: Opens,
) -> None:
    """Serve a candidate beside what is live, ask both the same, and go back.

    Raises:
        EaglerayError: when the candidate doesn't pass, with why.
    """
    options, live = before.options, before.releases.live

    def serve_(releases: Releases) -> None:
        turn(options, releases, ready_timeout_s, open_bundle)

    requests = golden(load_bundle(Path(live.folder)), spec)
    log(f"trying bundle {candidate.bundle[:12]} beside {live.bundle[:12]}")
    trial = Trial(mode=spec.mode, share=spec.share) if spec.share else None
    serve_(before.releases.model_copy(update={"candidate": candidate, "trial": trial}))
    try:
        with own_token(options, ("search", "answer", "assess"), _TRIAL_TIMEOUT_S) as token:
            asker = partial(ask_golden, opener(options), url_of(options), token)
            pairs = ask_both(asker, live.bundle, candidate.bundle, requests)
        time.sleep(spec.watch_s)
        tallies = _tallies(options.application)
        if not {live.bundle, candidate.bundle} <= tallies.keys():
            raise EaglerayError("the replicas don't say how the trial went", "try again", options.application)
    finally:
        serve_(before.releases)
    verdict = judge(pairs, tallies[live.bundle], tallies[candidate.bundle], spec)
    for line in verdict.lines:
        log(line)
    if not verdict.promotes:
        raise EaglerayError(
            f"bundle {candidate.bundle[:12]} was not promoted: {'; '.join(verdict.against)}",
            f"bundle {live.bundle[:12]} goes on answering; to serve the other all the same, "
            "leave `promotion` out",
            options.application,
        )


def running() -> list[Running]:
    """List the applications of the cluster's Ray Serve; none when Serve doesn't run."""
    listening = find_listening()
    if listening is None:
        return []
    found: list[Running] = []
    for name, overview in serve.status().applications.items():
        found_state = state_of(name)
        replicas = {
            deployment: sum(count for state, count in status.replica_states.items() if state == "RUNNING")
            for deployment, status in overview.deployments.items()
        }
        bundle, prefix = (found_state.serves, found_state.options.route_prefix) if found_state else ("", "/")
        url = url_at(listening.host, listening.port, prefix, bool(listening.certificate))
        found.append(Running(name, overview.status.value, url, bundle, replicas, overview.message))
    return found


def stop(application: str) -> None:
    """Stop an application; the last one takes Ray Serve with it, so that the port is free again."""
    names = set(serve.status().applications)
    if application not in names:
        known = ", ".join(sorted(names)) or "none"
        raise EaglerayError(f"no application {application!r} runs", f"running: {known}")
    if names == {application}:
        serve.shutdown()
    else:
        serve.delete(application)


def serve_until_interrupted(
    folder: Path, options: ServingOptions, digest: str | None, announce: Callable[[Deployed], None]
) -> None:
    """Serve a bundle in the foreground until Ctrl-C, then stop it.

    Args:
        folder: the bundle.
        options: how to serve it.
        digest: see `deploy`.
        announce: called once, when it answers.
    """
    try:
        announce(deploy(folder, options, digest))
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        pass
    finally:
        if options.application in serve.status().applications:
            stop(options.application)


def state_of(application: str) -> State | None:
    """What a running application says of itself; of its replicas one that isn't as the others, if any is."""
    states = _told(application, "state")
    return next((one for one in states if one != states[0]), states[0]) if states else None


def _is_listed(application: str) -> bool:
    return application in serve.status().applications


def _tallies(application: str) -> dict[str, Tally]:
    """Bundle → how it did, over all replicas."""
    total: dict[str, Tally] = {}
    for told in _told(application, "tallies"):
        for bundle, tally in told.items():
            total[bundle] = total.get(bundle, Tally()) + tally
    return total


def _told(application: str, method: str) -> list[Any]:
    """What every replica of an application's ingress says; nothing when it doesn't run, or isn't ours."""
    overview = serve.status().applications.get(application)
    if overview is None or overview.status != ApplicationStatus.RUNNING:
        return []
    try:
        handle: Any = serve.get_app_handle(application)
        if not handle.is_initialized:
            handle._init(_run_router_in_separate_loop=True)  # there is no event loop here
        return handle.broadcast(method).results(timeout_s=_CALL_TIMEOUT_S)
    except (RayError, RayServeException, TimeoutError, AttributeError):  # it isn't one of ours
        return []


def _wait_until_running(
    options: ServingOptions, releases: Releases, ready_timeout_s: float, forget: bool
) -> None:
    """Wait until the application serves `releases`; a new one that fails is removed when `forget`."""
    deadline = time.monotonic() + ready_timeout_s
    while True:
        states: list[State] = _told(options.application, "state")
        told = [one for one in states if one.options == options and one.releases == releases]
        problem = next((one.problem for one in told if one.problem), None)
        if problem is not None:
            raise EaglerayError(f"a replica can't serve the bundle: {problem}", where=options.application)
        if told and len(told) == len(states):
            return
        overview = serve.status().applications.get(options.application)
        if overview is not None and _is_asleep(overview):
            return
        failed = overview is not None and overview.status == ApplicationStatus.DEPLOY_FAILED
        if failed or time.monotonic() > deadline:
            break
        time.sleep(_POLL_S)
    said = _messages(overview) if overview else "Ray Serve doesn't know it"
    if forget:
        serve.delete(options.application, _blocking=False)  # waiting replicas take Serve 20 s to give up
    if failed:
        raise EaglerayError(f"the application failed to start: {said}", where=options.application)
    raise EaglerayError(
        f"the application was not healthy after {ready_timeout_s:g} s: {said}",
        "give it more time with --set STAGE.ready_timeout_s=…, or CPUs: every replica reserves "
        f"{options.cpus_per_replica:g}",
        options.application,
    )


def _is_asleep(overview: ApplicationStatusOverview) -> bool:
    """Whether it runs without replicas, until somebody asks."""
    states = [status.replica_states for status in overview.deployments.values()]
    return overview.status == ApplicationStatus.RUNNING and not any(map(any, states))


def _messages(overview: ApplicationStatusOverview) -> str:
    """What the deployments say that don't run: the last line of a traceback names the cause."""
    lines: list[str] = []
    for name, status in overview.deployments.items():
        said = status.message.strip().splitlines()
        states = ", ".join(f"{count} {state.lower()}" for state, count in status.replica_states.items())
        if status.status.value != "HEALTHY":
            lines.append(f"{name}: {said[-1].strip() if said else states or 'no replica yet'}")
    return "; ".join(lines) or overview.message or overview.status.value
