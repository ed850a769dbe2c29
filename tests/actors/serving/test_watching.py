"""A service is watched from outside: Prometheus' endpoint, a collector of spans, kept samples, drift."""

from __future__ import annotations

import base64
import json
import re
import secrets
import socket
import stat
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families

from eagleray.actors.serving.dashboard import grafana
from eagleray.actors.serving.drift import ALARM, LEAST
from eagleray.actors.serving.guard import BUNDLE_HEADER
from eagleray.actors.serving.spec import AutoscalingSpec, SamplesSpec, ServingOptions, TracesSpec
from eagleray.actors.serving.tokens import TokenFolder, issue
from eagleray.actors.serving.tracing import TRACE_HEADER

from .conftest import SPANISH

QUESTION = "What colour is the frog behind the house?"
CALLER = "00f067aa0ba902b7"
WAITS_S = 30.0


@dataclass
class Collector:
    """Takes spans as an OpenTelemetry collector does."""

    url: str
    spans: list[tuple[str, object]] = field(default_factory=list)
    """Process and span."""
    said: list[bytes] = field(default_factory=list)

    def of(self, trace: str, name: str, count: int = 1) -> list[tuple[str, object]]:
        """The spans of a trace whose name begins so, once there are so many."""
        found: list[tuple[str, object]] = []
        deadline = time.monotonic() + WAITS_S
        while len(found) < count and time.monotonic() < deadline:
            time.sleep(0.1)
            found = [
                (process, span)
                for process, span in list(self.spans)
                if span.trace_id.hex() == trace and span.name.startswith(name)
            ]
        assert len(found) == count, [span.name for _, span in self.spans]
        return found


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collected = Collector("")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["content-length"]))
            collected.said.append(body)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                about = {one.key: one.value.string_value for one in resource.resource.attributes}
                for scope in resource.scope_spans:
                    collected.spans += [(about["service.instance.id"], span) for span in scope.spans]
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    collected.url = f"http://127.0.0.1:{server.server_port}"
    yield collected
    server.shutdown()
    server.server_close()


@dataclass(frozen=True)
class Watched:
    """A service that is watched in every way."""

    client: httpx.Client
    samples: Path
    apart: bool


@pytest.fixture(scope="module", params=[False, True], ids=["whole", "apart"])
def watched(
    request: pytest.FixtureRequest,
    ray_cluster: None,
    described_folder: Path,
    collector: Collector,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Watched]:
    from ray import serve

    from eagleray.actors.serving import running

    serve.shutdown()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    work = tmp_path_factory.mktemp("watched")
    token, sent = issue("ann")
    TokenFolder(str(work / "tokens")).add(token)
    options = ServingOptions(
        application="apart" if request.param else "whole",
        port=port,
        apart=request.param,
        tokens=str(work / "tokens"),
        autoscaling=AutoscalingSpec(max_replicas=1),
        traces=TracesSpec(endpoint=collector.url, share=0),
        samples=SamplesSpec(folder=str(work / "samples"), share=1, most=4),
    )
    url = running.deploy(described_folder, options).url
    headers = {"authorization": f"Bearer {sent}"}
    with httpx.Client(base_url=url, trust_env=False, timeout=30, headers=headers) as client:
        yield Watched(client, work / "samples", request.param)
    serve.shutdown()


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def ask(watched: Watched, png: bytes, wav: bytes, **headers: str) -> httpx.Response:
    asked = {"question": QUESTION, "image": encoded(png), "speech": encoded(wav)}
    answer = watched.client.post("/v1/answer", json=asked, headers=headers)
    assert answer.status_code == 200
    return answer


def new_trace() -> str:
    return secrets.token_hex(16)


Figures = dict[str, list[tuple[dict[str, str], float]]]


def scrape() -> Figures:
    """Every figure that the node tells Prometheus."""
    import ray

    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    found: Figures = {}
    with opener.open(address, timeout=10) as response:
        for family in text_string_to_metric_families(response.read().decode()):
            for sample in family.samples:
                found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def figure(name: str, figures: Figures | None = None, **labels: str) -> float:
    """Sum of what is told under these labels, now or in what was told."""
    told = (scrape() if figures is None else figures).get(f"ray_{name}", [])
    return sum(value for about, value in told if labels.items() <= about.items())


def wait_for(name: str, value: float, **labels: str) -> None:
    deadline = time.monotonic() + WAITS_S
    while (found := figure(name, **labels)) != value:
        assert time.monotonic() < deadline, f"{name} {labels} is {found}, not {value}"
        time.sleep(0.3)


def test_spans_follow_a_request_across_processes(watched, collector, png, wav):
    trace = new_trace()
    answer = ask(watched, png, wav, traceparent=f"00-{trace}-{CALLER}-01")
    assert answer.headers[TRACE_HEADER] == trace
    ((front, root),) = collector.of(trace, "POST /v1/answer")
    assert root.parent_span_id.hex() == CALLER
    below = [
        one
        for name, count in (("prepare", 3), ("encode", 3), ("decode", 1))
        for one in collector.of(trace, name, count)
    ]
    assert {span.parent_span_id for _, span in below} == {root.span_id}
    processes = {span.name: process for process, span in below}
    assert (len({front, *processes.values()}) == 3) == watched.apart
    assert processes["prepare"] == processes["encode"]
    for _, span in below:
        assert root.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        about = {one.key: one.value for one in span.attributes}
        if span.name == "encode":
            assert about["rows"].int_value >= 1
            assert 0 <= about["queue_s"].double_value < 5
    about = {one.key: one.value for one in root.attributes}
    assert about["eagleray.bundle"].string_value == answer.headers[BUNDLE_HEADER]
    assert about["http.response.status_code"].int_value == 200


def test_spans_hold_nothing_of_what_was_asked(watched, collector, png, wav):
    trace = new_trace()
    parent = {"traceparent": f"00-{trace}-{CALLER}-01"}
    ask(watched, png, wav, **parent)
    broken = {"inputs": [{"image": encoded(QUESTION.encode())}]}
    assert watched.client.post("/v1/embed", json=broken, headers=parent).status_code == 422
    collector.of(trace, "decode")
    collector.of(trace, "POST", 2)
    told = b"".join(collector.said)
    assert b"/v1/answer" in told
    assert b"colour" not in told


def test_a_request_that_is_not_drawn_is_not_traced(watched, collector, png, wav):
    assert TRACE_HEADER not in ask(watched, png, wav).headers
    unwanted = f"00-{new_trace()}-{CALLER}-00"
    assert TRACE_HEADER not in ask(watched, png, wav, traceparent=unwanted).headers
    assert TRACE_HEADER not in ask(watched, png, wav, traceparent="nonsense").headers


def test_prometheus_is_told_what_was_asked_refused_and_computed(watched, png, wav):
    name = "apart" if watched.apart else "whole"
    route = {"application": name, "route": "/v1/answer"}
    time.sleep(2.5)  # what was asked before is told by then
    told = scrape()
    answered = figure("eagleray_requests_total", told, **route, status="200")
    decoded = figure("eagleray_part_seconds_count", told, application=name, part="decode")
    tokens = figure("eagleray_answer_tokens_sum", told, application=name)
    bundle = ask(watched, png, wav).headers[BUNDLE_HEADER][:12]
    ask(watched, png, wav)
    wrong = {"inputs": [{"image": "!"}]}
    assert watched.client.post("/v1/embed", json=wrong).status_code == 400
    assert watched.client.post("/v1/embed", json={}, headers={"authorization": ""}).status_code == 401
    assert watched.client.get("/nowhere/at/all").status_code == 404

    wait_for("eagleray_requests_total", answered + 2, **route, status="200", code="", bundle=bundle)
    wait_for("eagleray_request_seconds_count", answered + 2, **route)
    assert 0 < figure("eagleray_request_seconds_sum", **route) < 60
    embed = {"application": name, "route": "/v1/embed"}
    wait_for("eagleray_requests_total", 1, **embed, status="400", code="invalid-base64")
    wait_for("eagleray_requests_total", 1, **embed, status="401", code="no-token")
    wait_for("eagleray_requests_total", 1, application=name, route="other", status="404")
    wait_for("eagleray_part_seconds_count", decoded + 2, application=name, part="decode")
    wait_for("eagleray_in_hand", 0, application=name)
    told = scrape()
    assert figure("eagleray_answer_tokens_sum", told, application=name) >= tokens + 2
    for part in ("prepare", "queue", "encode"):
        for modality in ("image", "text", "speech"):
            labels = {"application": name, "part": part, "modality": modality}
            assert figure("eagleray_part_seconds_count", told, **labels) >= 2
    assert figure("eagleray_batch_rows_count", told, application=name, modality="answer") >= 2


def test_drift_is_told_of_what_is_unlike_the_corpus(watched, inputs):
    assert watched.client.get("/v1/drift", headers={"authorization": ""}).status_code == 401
    before = watched.client.get("/v1/drift").json()
    assert not [one for one in before["shifts"] if one["quantity"].startswith("text")]
    given = [{"text": one} for one in inputs.texts(1, LEAST, SPANISH)]
    given += [{"speech": encoded(one)} for one in inputs.recordings(1, LEAST)]
    for start in range(0, len(given), 64):
        sent = {"inputs": given[start : start + 64]}
        assert watched.client.post("/v1/embed", json=sent).status_code == 200
    found = {one["quantity"]: one for one in watched.client.get("/v1/drift").json()["shifts"]}
    assert found["text.language"]["alarm"]
    assert found["text.rarity"]["alarm"]
    assert not [name for name, one in found.items() if name.startswith("speech") and one["alarm"]]
    name = "apart" if watched.apart else "whole"
    deadline = time.monotonic() + WAITS_S
    while figure("eagleray_drift", application=name, quantity="text.language") < ALARM:
        assert time.monotonic() < deadline
        time.sleep(0.3)
    assert figure("eagleray_drift", application=name, quantity="speech.tilt") < ALARM


def test_the_dashboard_asks_for_nothing_that_is_not_told(watched):
    board = json.loads(grafana())
    assert board["schemaVersion"] >= 39
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids) > 5
    variables = {one["name"]: one for one in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    told = scrape()
    asked: set[str] = set()
    for panel in board["panels"]:
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["targets"]
        for target in panel["targets"]:
            names = set(re.findall(r"\bray_\w+", target["expr"]))
            assert names
            asked |= names
            for name, labels in re.findall(r"\b(ray_\w+)\{([^}]*)\}", target["expr"]):
                used = {
                    one.split("=")[0].rstrip("!~").strip() for one in re.split(r",\s*(?=\w+[!=])", labels)
                }
                assert used <= set(told[name][0][0]), (name, used)
            for by in re.findall(r"by \(([^)]*)\)", target["expr"]):
                known = {label for name in names for label in told[name][0][0]}
                assert {one.strip() for one in by.split(",")} <= known
    assert asked <= set(told)
    ours = {re.sub("_(bucket|sum|count)$", "", name) for name in told if name.startswith("ray_eagleray_")}
    assert ours == {re.sub("_(bucket|sum|count)$", "", name) for name in asked}


def test_samples_are_kept_closed_few_and_whole(watched, png, wav):
    for _ in range(3):
        said = ask(watched, png, wav).json()
    watched.client.get("/v1/drift")
    watched.client.post("/v1/embed", json={}, headers={"authorization": ""})
    answered = watched.client.post("/v1/embed", json={"inputs": [{"text": "a last frog"}]}).json()
    deadline = time.monotonic() + WAITS_S
    while True:
        files = sorted(watched.samples.iterdir())
        kept = [json.loads(path.read_bytes()) for path in files if path.suffix == ".json"]
        paths = [one["path"] for one in kept]
        if paths == ["/v1/answer"] * 3 + ["/v1/embed"]:
            break
        assert time.monotonic() < deadline, paths
        time.sleep(0.1)
    assert kept[-1]["request"] == {"inputs": [{"text": "a last frog"}]}
    assert kept[-1]["answer"] == answered
    assert kept[-2]["request"]["question"] == QUESTION
    assert kept[-2]["answer"] == said
    assert kept[-1]["bundle"] == answered["bundle"]
    assert stat.S_IMODE(watched.samples.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    token = watched.client.headers["authorization"].split()[1]
    assert not [path for path in files if token in path.read_text()]


def test_a_collector_that_is_away_costs_no_request(ray_cluster, bundle_folder, free_port, png, wav):
    from ray import serve

    from eagleray.actors.serving import running

    serve.shutdown()
    traces = TracesSpec(endpoint="http://127.0.0.1:9", share=1)
    url = running.deploy(bundle_folder, ServingOptions(port=free_port, traces=traces)).url
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
        for _ in range(20):
            begun = time.monotonic()
            answer = client.post("/v1/embed", json={"inputs": [{"text": "a frog"}]})
            assert answer.status_code == 200
            assert len(answer.headers[TRACE_HEADER]) == 32
            assert time.monotonic() - begun < 5
        refused = client.get("/v1/drift")
    assert (refused.status_code, refused.json()["code"]) == (404, "no-statistics")
    serve.shutdown()
