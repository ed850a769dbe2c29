"""Deploys bundles on the cluster's Ray Serve, waits for them, lists them, and stops them."""

from __future__ import annotations

import errno
import hashlib
import json
import shlex
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

import grpc
import ray
from ray import serve
from ray._private import worker as ray_worker
from ray.exceptions import RayError
from ray.serve.config import gRPCOptions
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, LoggingConfig

from ...pipelines.bundle import LoadedBundle, bundle_digest, load_bundle, read_info
from ...workflows.errors import EaglerayError
from .application import State, build_application
from .guard import BUNDLE_HEADER
from .moderating.moderator import check as check_moderation
from .promoting import GoldenRequest, Outcome, ask_both, golden, judge
from .protocol import SERVICE
from .releases import Release, Releases, Trial
from .rpc import ADD_TO_SERVER, APPLICATION
from .spec import PromotionSpec, ServingOptions
from .switching import Tally
from .tls import install, name_of, read_pem, trusting
from .tokens import Scope, TokenFolder, issue

_POLL_S = 0.25
_LOGGING = LoggingConfig(log_level="WARNING", enable_access_log=False)
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
        request: the sample request, as JSON.
        answer: its answer.
        asks_for_tokens: whether a request must have one.
        grpc: host:port where it answers over gRPC, if it does.
        trust: further words for curl, so that it trusts the certificate; empty without TLS.
    """

    url: str
    bundle: str
    kept: bool
    request: dict[str, Any]
    answer: dict[str, Any]
    asks_for_tokens: bool = False
    grpc: str | None = None
    trust: str = ""

    @property
    def command(self) -> str:
        """The sample request as a shell command."""
        body = shlex.quote(json.dumps(self.request, ensure_ascii=False))
        token = ' -H "authorization: Bearer $TOKEN"' if self.asks_for_tokens else ""
        return (
            f"curl -s{self.trust} {self.url}/v1/search{token} -H 'content-type: application/json' -d {body}"
        )


def deploy(
    folder: Path,
    options: ServingOptions,
    digest: str | None = None,
    log: Callable[[str], None] = lambda message: None,
    open_bundle: Callable[[Path], LoadedBundle] = load_bundle,
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
    caption = load_bundle(folder).first_caption  # a damaged bundle stops here, before anything is replaced
    release = Release(bundle=digest or bundle_digest(folder), folder=str(folder.absolute()))
    _check_who_may_ask(options)
    if options.moderation is not None:
        check_moderation(options.moderation, read_info(folder))
    _start_serve(options, read_pem(options.tls) if options.tls else None)
    made_with, before = options.of_replicas, state_of(options.application)
    releases = Releases(live=release) if before is None else before.releases.followed_by(release)
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
    url = _url_of(options)
    request = {"text": caption, "top_k": 3}
    with own_token(options, ("search",), options.ready_timeout_s) as token:
        answer = _ask(_opener(options), url, request, token, release.bundle, deadline)
    url, trust = _as_clients_reach(url, options)
    address = None
    if options.grpc_port is not None:
        address = _address(options.host, options.grpc_port)
        _wait_for_grpc(address, options.application, deadline)
    asks_for_tokens = options.tokens is not None
    return Deployed(url, release.bundle, kept, request, answer, asks_for_tokens, address, trust)


def roll_back(application: str, log: Callable[[str], None] = lambda message: None) -> Running:
    """Serve again what an application served before, without a trial.

    Raises:
        EaglerayError: when nothing was, or it can't be served any more; what is served goes on.
    """
    before = None if _listening() is None else state_of(application)
    if before is None:
        known = ", ".join(one.application for one in running() if one.bundle) or "none"
        raise EaglerayError(f"no application {application!r} of ours runs", f"running: {known}")
    if not before.releases.previous:
        raise EaglerayError(
            "nothing was served before this bundle", "serve another one: eagleray serve FOLDER", application
        )
    releases = before.releases.gone_back()
    load_bundle(Path(releases.live.folder))
    log(f"going back from bundle {before.releases.live.bundle[:12]} to {releases.live.bundle[:12]}")
    turn(before.options, releases, before.options.ready_timeout_s)
    (found,) = (one for one in running() if one.application == application)
    return found


def turn(
    options: ServingOptions,
    releases: Releases,
    ready_timeout_s: float,
    open_bundle: Callable[[Path], LoadedBundle] = load_bundle,
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
    before = state_of(name)
    try:
        _run(options, releases, open_bundle)
        _wait_until_running(options, releases, ready_timeout_s, forget=before is None)
    except EaglerayError:
        if before is not None and before.options == options:
            _run(options, before.releases, open_bundle)
            _wait_until_running(options, before.releases, ready_timeout_s, forget=False)
        raise


def _run(options: ServingOptions, releases: Releases, open_bundle: Callable[[Path], LoadedBundle]) -> None:
    application = build_application(releases, options, open_bundle)
    target = serve.RunTarget(application, options.application, options.route_prefix, _LOGGING)
    try:
        serve.run_many([target], wait_for_applications_running=False)
    except RayServeException as error:  # another application has the prefix
        raise EaglerayError(
            str(error).strip().splitlines()[-1],  # before it, a traceback of Serve's controller
            f"choose another path: {_option('route_prefix', '/NAME')}",
            options.application,
        ) from None


def _try_out(
    before: State,
    candidate: Release,
    spec: PromotionSpec,
    log: Callable[[str], None],
    ready_timeout_s: float,
    open_bundle: Callable[[Path], LoadedBundle],
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
        with own_token(options, ("search", "answer"), _TRIAL_TIMEOUT_S) as token:
            asker = partial(_ask_golden, _opener(options), _url_of(options), token)
            pairs = ask_both(asker, live.bundle, candidate.bundle, requests)
        time.sleep(spec.watch_s)
        tallies = _tallies(options.application)
    finally:
        serve_(before.releases)
    verdict = judge(pairs, tallies.get(live.bundle, Tally()), tallies.get(candidate.bundle, Tally()), spec)
    for line in verdict.lines:
        log(line)
    if not verdict.promotes:
        raise EaglerayError(
            f"bundle {candidate.bundle[:12]} was not promoted: {'; '.join(verdict.against)}",
            f"bundle {live.bundle[:12]} goes on answering; to serve the other all the same, "
            "leave `promotion` out",
            options.application,
        )


def _ask_golden(
    opener: urllib.request.OpenerDirector, url: str, token: str | None, request: GoldenRequest, bundle: str
) -> Outcome:
    """Ask one of an application's bundles."""
    call = _post(f"{url}{request.path}", request.body, token, {BUNDLE_HEADER: bundle})
    begun = time.monotonic()
    try:
        with opener.open(call, timeout=_CALL_TIMEOUT_S) as response:
            answer = json.load(response)
    except urllib.error.HTTPError as error:
        return Outcome(False, time.monotonic() - begun, error.code >= HTTPStatus.INTERNAL_SERVER_ERROR)
    except OSError:
        return Outcome(False, time.monotonic() - begun, failed=True)
    return Outcome(request.is_right(answer), time.monotonic() - begun)


def _post(
    url: str, body: Mapping[str, Any], token: str | None, headers: Mapping[str, str] = {}
) -> urllib.request.Request:
    sent = {"content-type": "application/json", **headers}
    if token is not None:
        sent["authorization"] = f"Bearer {token}"
    return urllib.request.Request(url, json.dumps(body).encode(), sent)


def running() -> list[Running]:
    """List the applications of the cluster's Ray Serve; none when Serve doesn't run."""
    listening = _listening()
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
        url = _url(listening.host, listening.port, prefix, bool(listening.certificate))
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


def _check_who_may_ask(options: ServingOptions) -> None:
    """Refuse what would let a network ask, or listen, by oversight."""
    if options.is_here:
        return
    if options.tokens is None and not options.open:
        raise EaglerayError(
            f"{options.host} is open to the network, and nothing checks who asks",
            f"ask for tokens (eagleray tokens create; {_option('tokens', '/FOLDER')}), or listen on this "
            f"machine only ({_option('host', '127.0.0.1')}), or say that anyone may ask: "
            "--set STAGE.open=true (--open for `eagleray serve`)",
            options.application,
        )
    if options.tokens is not None and options.tls is None and not options.plaintext:
        raise EaglerayError(
            f"on {options.host} tokens would cross the network in the clear",
            f"give a certificate ({_option('tls.certificate', '/CERTIFICATE.pem')}, "
            f"{_option('tls.key', '/KEY.pem')}), or say that something before it encrypts: "
            "--set STAGE.plaintext=true (--plaintext for `eagleray serve`)",
            options.application,
        )
    if options.tokens is not None and options.grpc_port is not None and not options.plaintext:
        raise EaglerayError(
            f"gRPC has no TLS here, and on {options.host} tokens would cross the network in the clear",
            "leave grpc_port out, or say that something before it encrypts: "
            "--set STAGE.plaintext=true (--plaintext for `eagleray serve`)",
            options.application,
        )


def _start_serve(options: ServingOptions, pem: bytes | None) -> None:
    """Start Ray Serve at the address asked for, or make sure that it already listens there."""
    haproxy = _haproxy()
    tls = {"ssl_keyfile": options.tls.key, "ssl_certfile": options.tls.certificate} if options.tls else {}
    certificate = _digest(pem) if haproxy else tls.get("ssl_certfile", "")
    listening = _listening()
    if listening is not None and listening.suits(options, certificate):
        return
    if listening is not None:
        others = sorted(set(serve.status().applications) - {options.application})
        if others:
            how = " with a certificate" if listening.certificate else ""
            raise EaglerayError(
                f"Ray Serve listens on {listening}{how} for {', '.join(others)}, "
                "and a cluster has one Serve address",
                f"use that one: {_option('port', listening.port)} (and host {listening.host}"
                f"{', and the same certificate' if how else ''})"
                + (f", {_option('grpc_port', listening.grpc_port)}" if listening.grpc_port else ""),
                f"{options.host}:{options.port}"
                + (f" (gRPC: {options.grpc_port})" if options.grpc_port else ""),
            )
        serve.shutdown()
    _check_port(options, options.port, "port")
    speaks: dict[str, Any] = {}
    if options.grpc_port is not None:
        _check_port(options, options.grpc_port, "grpc_port")
        speaks["grpc_options"] = gRPCOptions(
            port=options.grpc_port, grpc_servicer_functions=[ADD_TO_SERVER], enable_reflection=False
        )
    if haproxy is not None:
        install(haproxy, options.port, pem)
        tls = {}  # else replicas would speak it, and HAProxy not
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": options.host, "port": options.port, **tls},
        logging_config=_LOGGING,
        **speaks,
    )


def _check_port(options: ServingOptions, port: int, field: str) -> None:
    """Refuse a port that something else has; Serve's own proxy would share it (SO_REUSEPORT)."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((options.host, port))
        except OSError as error:
            where = f"{options.host}:{port}"
            if error.errno == errno.EADDRINUSE:
                raise EaglerayError(
                    f"port {port} is in use by another program",
                    f"end that program, or run again with {_option(field, _free_port(options.host))}",
                    where,
                ) from None
            raise EaglerayError(
                f"can't listen there: {error.strerror}",
                "choose an address of this machine and a port above 1023: "
                f"{_option('host', '127.0.0.1')}, {_option(field, 8000 if field == 'port' else 9000)}",
                where,
            ) from None


def _option(field: str, value: object) -> str:
    """How a person sets a serving option, in a workflow or for the `serve` command."""
    flag = f"--{field.replace('_', '-').replace('.', '-')}"
    return f"--set STAGE.{field}={value} ({flag} {value} for `eagleray serve`)"


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class _Listening:
    """Where the cluster's Ray Serve is asked.

    Attributes:
        host, port: over HTTP.
        grpc_port: over gRPC.
        certificate: its path, behind HAProxy a digest; empty for none.
    """

    host: str
    port: int
    grpc_port: int | None
    certificate: str

    def __str__(self) -> str:
        return f"{self.host}:{self.port}" + (f" and {self.grpc_port} (gRPC)" if self.grpc_port else "")

    def suits(self, options: ServingOptions, certificate: str) -> bool:
        """Whether an application with these options can be asked there."""
        same = (self.host, self.port, self.certificate) == (options.host, options.port, certificate)
        return same and options.grpc_port in (None, self.grpc_port)


def _listening() -> _Listening | None:
    """Where the cluster's Ray Serve is asked; none when it doesn't run."""
    try:  # Serve has no public way to ask for its address
        controller: Any = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
        asked = [controller.get_http_config.remote(), controller.get_grpc_config.remote()]
        config, speaks = ray.get(asked, timeout=_CALL_TIMEOUT_S)
    except (ValueError, RayError):  # ValueError: no actor of that name
        return None
    grpc_port = speaks.port if ADD_TO_SERVER in speaks.grpc_servicer_functions else None
    haproxy = _haproxy()
    if haproxy is None:
        certificate = config.ssl_certfile or ""
    else:
        pem = haproxy / f"tls-{config.port}.pem"
        certificate = _digest(pem.read_bytes() if pem.is_file() else None)
    return _Listening(config.host, config.port, grpc_port, certificate)


def _haproxy() -> Path | None:
    """Folder of the program that is this cluster's HAProxy, if it is ours."""
    node: Any = getattr(ray_worker, "_global_node", None)
    if node is None:
        return None
    folder = Path(node.get_temp_dir_path()).parent / "proxy"
    return folder if (folder / "haproxy").is_file() else None


def _digest(pem: bytes | None) -> str:
    return "" if pem is None else hashlib.sha256(pem).hexdigest()


def state_of(application: str) -> State | None:
    """What a running application says of itself; of its replicas one that isn't as the others, if any is."""
    states = _told(application, "state")
    return next((one for one in states if one != states[0]), states[0]) if states else None


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


def _messages(overview: ApplicationStatusOverview) -> str:
    """What the deployments say that don't run: the last line of a traceback names the cause."""
    lines: list[str] = []
    for name, status in overview.deployments.items():
        said = status.message.strip().splitlines()
        states = ", ".join(f"{count} {state.lower()}" for state, count in status.replica_states.items())
        if status.status.value != "HEALTHY":
            lines.append(f"{name}: {said[-1].strip() if said else states or 'no replica yet'}")
    return "; ".join(lines) or overview.message or overview.status.value


@contextmanager
def own_token(options: ServingOptions, scopes: tuple[Scope, ...], seconds: float) -> Generator[str | None]:
    """A token for requests of the deployment's own within some seconds, which is revoked after them."""
    if options.tokens is None:
        yield None
        return
    folder = TokenFolder(options.tokens)
    expires = datetime.now(UTC) + timedelta(seconds=seconds)
    token, sent = issue("the deployment's own requests", scopes, expires=expires)
    folder.add(token)
    try:
        yield sent
    finally:
        folder.revoke(token.id)


def _ask(
    opener: urllib.request.OpenerDirector,
    url: str,
    request: dict[str, Any],
    token: str | None,
    digest: str,
    deadline: float,
) -> dict[str, Any]:
    """Search over HTTP until the bundle with `digest` answers; routes reach the proxy a moment late."""
    call = _post(f"{url}/v1/search", request, token)
    while True:
        try:
            with opener.open(call, timeout=max(deadline - time.monotonic(), 1)) as response:
                if response.headers[BUNDLE_HEADER] == digest:
                    return json.load(response)
                said = f"bundle {response.headers[BUNDLE_HEADER]} answered"
        except urllib.error.HTTPError as error:
            said = f"status {error.code}: {error.read().decode(errors='replace')}"
        except OSError as error:
            said = str(error)
        if time.monotonic() > deadline:
            raise EaglerayError(
                f"the application did not answer its first request: {said}",
                "give it more time: --set STAGE.ready_timeout_s=…",
                url,
            )
        time.sleep(_POLL_S)


def _wait_for_grpc(address: str, application: str, deadline: float) -> None:
    """Wait until an application answers over gRPC; routes reach the proxy a moment late."""
    method = f"/{SERVICE}/ServerReady"
    while True:
        with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            ask: Any = channel.unary_unary(method)  # the request and what matters of the answer are empty
            try:
                ask(b"", timeout=_CALL_TIMEOUT_S, metadata=[(APPLICATION, application)])
                return
            except grpc.RpcError as error:
                said = str(error.details())
        if time.monotonic() > deadline:
            raise EaglerayError(
                f"the application did not answer over gRPC: {said}",
                "give it more time: --set STAGE.ready_timeout_s=…",
                address,
            )
        time.sleep(_POLL_S)


def _address(host: str, port: int) -> str:
    """How this machine reaches a listener."""
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"{f'[{host}]' if ':' in host else host}:{port}"


def _opener(options: ServingOptions) -> urllib.request.OpenerDirector:
    """Asks a service on this machine, which needs no proxy, and has the certificate that it was given."""
    secure = urllib.request.HTTPSHandler(context=trusting(options.tls) if options.tls else None)
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), secure)


def _url_of(options: ServingOptions) -> str:
    return _url(options.host, options.port, options.route_prefix, options.tls is not None)


def _url(host: str, port: int, route_prefix: str, secure: bool) -> str:
    """Where this machine reaches an application over HTTP."""
    return f"{'https' if secure else 'http'}://{_address(host, port)}{route_prefix.rstrip('/')}"


def _as_clients_reach(url: str, options: ServingOptions) -> tuple[str, str]:
    """A URL of a name that the certificate has, and what curl needs to trust it on this machine."""
    if options.tls is None:
        return url, ""
    reached = urllib.parse.urlsplit(url)
    name = name_of(options.tls, reached.hostname or "")
    trust = f" --cacert {shlex.quote(options.tls.certificate)}"
    if name == reached.hostname:
        return url, trust
    shown = reached._replace(netloc=f"{name}:{reached.port}").geturl()
    return shown, f"{trust} --connect-to {shlex.quote(f'{name}:{reached.port}:{reached.netloc}')}"
