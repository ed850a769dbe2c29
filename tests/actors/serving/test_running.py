"""A bundle on a real Ray Serve, asked over real HTTP."""

import base64
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from eagleray.actors.serving.spec import (
    AutoscalingSpec,
    LimitsSpec,
    ModerationSpec,
    PairRule,
    ServingOptions,
    TextPolicy,
    Thresholds,
)
from eagleray.workflows.errors import EaglerayError

pytestmark = pytest.mark.usefixtures("ray_cluster")

MAX_BATCH_SIZE = 4
SCALING = AutoscalingSpec(min_replicas=1, max_replicas=3, latency_s=0.5, startup_s=7, keep=2)


@pytest.fixture(scope="module")
def options(free_port):
    return ServingOptions(
        application="stamps", port=free_port, max_batch_size=MAX_BATCH_SIZE, autoscaling=SCALING
    )


@pytest.fixture(scope="module")
def deployed(ray_cluster, bundle_folder, options):
    from ray import serve

    from eagleray.actors.serving import running

    serve.shutdown()  # what other modules have served
    yield running.deploy(bundle_folder, options)
    serve.shutdown()


@pytest.fixture(scope="module")
def client(deployed):
    with httpx.Client(base_url=deployed.url, trust_env=False, timeout=30) as client:
        yield client


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def batch_sizes(application):
    from ray import serve

    return serve.get_deployment_handle("Model", application).batch_sizes.remote().result(timeout_s=10)


def test_deploying_ends_with_a_real_answer(deployed, loaded_bundle):
    (query,) = loaded_bundle.embed("text", [loaded_bundle.prepare_text(deployed.request["text"])])
    expected = loaded_bundle.search(query, deployed.request["top_k"])
    assert [r["id"] for r in deployed.answer["results"]] == [hit.id for hit in expected]
    assert deployed.command.startswith(f"curl -s {deployed.url}/v1/search ")


def test_answers_equal_the_bundle_run_directly(client, loaded_bundle, png, wav):
    inputs = [{"text": "A frog."}, {"image": b64(png)}, {"speech": b64(wav)}]
    answer = client.post("/v1/embed", json={"inputs": inputs}).json()
    rows = {
        "text": loaded_bundle.prepare_text("A frog."),
        "image": loaded_bundle.prepare_image(png),
        "speech": loaded_bundle.prepare_speech(wav),
    }
    expected = np.concatenate([loaded_bundle.embed(modality, [row]) for modality, row in rows.items()])
    np.testing.assert_allclose(answer["embeddings"], expected, atol=1e-6)
    assert answer["dim"] == expected.shape[1]


def test_concurrent_requests_are_answered_in_batches_of_at_most_the_largest_size(client, loaded_bundle):
    before = batch_sizes("stamps").get("text", {})
    texts = [f"A frog, number {i}." for i in range(12)]
    with ThreadPoolExecutor(12) as pool:
        ask = lambda text: client.post("/v1/embed", json={"inputs": [{"text": text}]}).json()  # noqa: E731
        answers = list(pool.map(ask, texts))
    after = batch_sizes("stamps")["text"]
    batches = {size: count - before.get(size, 0) for size, count in after.items()}
    assert sum(size * count for size, count in batches.items()) == 12
    assert max(after) <= MAX_BATCH_SIZE
    expected = loaded_bundle.embed("text", [loaded_bundle.prepare_text(text) for text in texts])
    np.testing.assert_allclose([a["embeddings"][0] for a in answers], expected, atol=1e-6)


def test_a_pictures_own_image_finds_it_first(client, corpus_pictures):
    for picture, data in corpus_pictures.items():
        results = client.post("/v1/search", json={"image": b64(data), "top_k": 2}).json()["results"]
        assert results[0]["id"] == picture
        assert results[0]["score"] == pytest.approx(1, abs=1e-4)


def test_search_takes_speech(client, wav):
    results = client.post("/v1/search", json={"speech": b64(wav), "top_k": 3}).json()["results"]
    assert len(results) == 3


@pytest.mark.parametrize(
    ("inputs", "status", "code"),
    [
        ([{"image": "***"}], 400, "invalid-base64"),
        ([{"image": b64(b"no picture")}], 422, "undecodable-image"),
        ([{"speech": b64(b"RIFF")}], 422, "undecodable-speech"),
        ([{"image": "data:text/plain;base64,aGk="}], 415, "unsupported-media-type"),
    ],
)
def test_bad_inputs_give_typed_errors_and_harm_nobody(client, inputs, status, code):
    response = client.post("/v1/embed", json={"inputs": inputs})
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert client.post("/v1/embed", json={"inputs": [{"text": "a"}]}).status_code == 200


def test_every_answer_carries_the_digest(client, deployed):
    for path in ("/healthz", "/docs", "/nope"):
        assert client.get(path).headers["x-eagleray-bundle"] == deployed.bundle


def test_autoscaling_and_limits_reach_the_deployment(deployed):
    import ray

    controller = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    details = ray.get(controller.get_serve_instance_details.remote())
    config = details["applications"]["stamps"]["deployments"]["Model"]["deployment_config"]
    scaling = config["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (1, 3)
    assert scaling["policy"]["policy_kwargs"] == {"latency_s": 0.5, "startup_s": 7, "keep": 2}
    assert config["max_queued_requests"] == LimitsSpec().max_queued_requests
    assert config["max_ongoing_requests"] >= MAX_BATCH_SIZE
    assert config["ray_actor_options"]["num_cpus"] == 1


def test_encoder_and_decoder_apart_answer_the_same(client, bundle_folder, beside, png, wav):
    from ray import serve

    from eagleray.actors.serving import running

    sent = {"question": "What colour is the frog?", "image": b64(png), "speech": b64(wav)}
    expected = client.post("/v1/answer", json=sent).json()
    harmless = TextPolicy(offensive=Thresholds())  # whatever a model says that was never trained
    rule = PairRule(name="cruelty", picture="living|things", words="hurt it")
    policy = ModerationSpec(speech=harmless, output=harmless, pairs=(rule,))
    update = {"apart": True, "cpus_per_replica": 0.5, "moderation": policy}
    deployed = running.deploy(bundle_folder, beside.model_copy(update=update))
    (found,) = (one for one in running.running() if one.application == "beside")
    assert found.replicas == {"Front": 1, "Encoder": 1, "Decoder": 1}
    with httpx.Client(base_url=deployed.url, trust_env=False, timeout=30) as asking:
        told = asking.post("/v1/answer", json=sent).json()
        for name in ("answer", "weights", "attention"):
            assert told[name] == expected[name]
        chat = {"model": "beside", "messages": [{"role": "user", "content": sent["question"]}]}
        whole = asking.post("/v1/chat/completions", json=chat).json()["choices"][0]["message"]["content"]
        lines = asking.post("/v1/chat/completions", json=chat | {"stream": True}).text.split("\n\n")
        assert lines[-2] == "data: [DONE]"
        events = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
        assert "".join(e["choices"][0]["delta"].get("content", "") for e in events).strip() == whole
        said = asking.post(
            "/v1/audio/transcriptions", files={"file": ("a.wav", wav)}, data={"model": "beside"}
        )
        assert said.status_code == 200
        refused = asking.post("/v1/answer", json=sent | {"image": "!"})
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid-base64")
        blocked = asking.post("/v1/answer", json=sent | {"question": "How do I hurt it?"})
        assert (blocked.status_code, blocked.json()["code"]) == (400, "blocked-content")
    serve.delete("beside")


def test_deploying_the_same_again_keeps_it_and_another_option_replaces_it(deployed, bundle_folder, options):
    from eagleray.actors.serving import running

    again = running.deploy(bundle_folder, options.model_copy(update={"ready_timeout_s": 99.0}))
    assert again.kept
    other = options.model_copy(update={"limits": LimitsSpec(max_queued_requests=1)})
    changed = running.deploy(bundle_folder, other)
    assert not changed.kept
    many = {"inputs": [{"text": "a"}] * 64}
    overloaded = httpx.post(f"{changed.url}/v1/embed", json=many, trust_env=False)
    assert (overloaded.status_code, overloaded.json()["code"]) == (503, "overloaded")
    assert overloaded.headers["retry-after"] == "1"


def test_what_runs_is_listed(deployed):
    from eagleray.actors.serving import running

    (found,) = running.running()
    assert (found.application, found.status, found.url) == ("stamps", "RUNNING", deployed.url)
    assert found.bundle == deployed.bundle
    assert found.replicas["Model"] == 1


def test_another_port_is_refused_while_other_applications_use_serve(deployed, bundle_folder, options):
    from eagleray.actors.serving import running

    elsewhere = options.model_copy(update={"application": "second", "port": options.port + 1})
    with pytest.raises(EaglerayError, match="for stamps") as caught:
        running.deploy(bundle_folder, elsewhere)
    assert f"STAGE.port={options.port}" in caught.value.remedy


def test_a_damaged_bundle_replaces_nothing(deployed, bundle_folder, options, tmp_path, client):
    import shutil

    from eagleray.actors.serving import running

    damaged = shutil.copytree(bundle_folder, tmp_path / "bundle")
    (damaged / "text.onnx").write_bytes(b"")
    with pytest.raises(EaglerayError, match=r"text.onnx was changed"):
        running.deploy(damaged, options)
    assert client.get("/healthz").headers["x-eagleray-bundle"] == deployed.bundle


@pytest.fixture
def beside(deployed, options):
    """Options of an application beside the one that runs, on the same Serve; it must be gone at the end."""
    from ray import serve

    from eagleray.actors.serving import running

    yield options.model_copy(
        update={
            "application": "beside",
            "route_prefix": "/beside",
            "limits": LimitsSpec(request_timeout_s=0.5),
        }
    )
    deadline = time.monotonic() + 10
    while "beside" in serve.status().applications and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [found.application for found in running.running()] == ["stamps"]


def test_replicas_follow_the_load(bundle_folder, beside):
    from ray import serve

    from eagleray.actors.serving import running

    scaling = AutoscalingSpec(min_replicas=1, max_replicas=2, latency_s=0.01, startup_s=2, keep=1)
    update = {"autoscaling": scaling, "cpus_per_replica": 0.5}
    deployed = running.deploy(bundle_folder, beside.model_copy(update=update))

    def count():
        (found,) = (one for one in running.running() if one.application == "beside")
        return found.replicas["Model"]

    def wait_for(replicas):
        deadline = time.monotonic() + 60
        while count() != replicas:
            assert time.monotonic() < deadline, f"{count()} replicas, not {replicas}"
            time.sleep(0.2)

    assert count() == 1
    ends = threading.Event()

    def ask():
        with httpx.Client(base_url=deployed.url, trust_env=False, timeout=30) as asking:
            while not ends.is_set():
                asking.post("/v1/embed", json={"inputs": [{"text": "A frog."}] * 8})

    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(ask)
        try:
            wait_for(2)
        finally:
            ends.set()
    wait_for(1)
    serve.delete("beside")


def test_too_few_cpus_end_in_an_error_that_says_so(bundle_folder, beside):
    from eagleray.actors.serving import running

    greedy = beside.model_copy(update={"cpus_per_replica": 1000, "ready_timeout_s": 2})
    with pytest.raises(EaglerayError, match=r"not healthy after 2 s: Model: 1 starting") as caught:
        running.deploy(bundle_folder, greedy)
    assert "every replica reserves 1000" in caught.value.remedy


def test_a_replica_that_cannot_start_says_why(bundle_folder, beside):
    from eagleray.actors.serving import running

    def refuse(folder, form):
        raise OSError("no such bundle here")

    with pytest.raises(EaglerayError, match=r"failed to start: Model: .*no such bundle here"):
        running.deploy(bundle_folder, beside, open_bundle=refuse)


def test_a_path_of_another_application_is_refused(bundle_folder, beside):
    from eagleray.actors.serving import running

    with pytest.raises(EaglerayError, match="used by application") as caught:
        running.deploy(bundle_folder, beside.model_copy(update={"route_prefix": "/"}))
    assert "--set STAGE.route_prefix" in caught.value.remedy


def test_grpc_is_refused_where_serve_listens_without_it(deployed, bundle_folder, beside, options):
    from eagleray.actors.serving import running

    with pytest.raises(EaglerayError, match="a cluster has one Serve address") as caught:
        running.deploy(bundle_folder, beside.model_copy(update={"grpc_port": 9000}))
    assert f"--set STAGE.port={options.port}" in caught.value.remedy
    assert caught.value.where == f"127.0.0.1:{options.port} (gRPC: 9000)"


def test_http_and_grpc_need_ports_of_their_own():
    with pytest.raises(ValueError, match="port and grpc_port are both 9000"):
        ServingOptions(port=9000, grpc_port=9000)


def test_a_stopped_application_frees_the_port(deployed, options):
    from eagleray.actors.serving import running

    with pytest.raises(EaglerayError, match="no application 'other'"):
        running.stop("other")
    running.stop("stamps")
    assert running.running() == []
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((options.host, options.port))


def test_a_port_in_use_is_named_with_a_free_one(bundle_folder):
    from eagleray.actors.serving import running

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(EaglerayError, match=f"port {port} is in use") as caught:
            running.deploy(bundle_folder, ServingOptions(port=port))
    assert caught.value.where == f"127.0.0.1:{port}"
    assert "--set STAGE.port=" in caught.value.remedy
    assert str(port) not in caught.value.remedy


def test_an_address_of_another_machine_is_refused(bundle_folder):
    from eagleray.actors.serving import running

    with pytest.raises(EaglerayError, match="can't listen"):
        running.deploy(bundle_folder, ServingOptions(host="203.0.113.1", open=True))


def test_serving_in_the_foreground_ends_with_ctrl_c(bundle_folder, options):
    from eagleray.actors.serving import running

    answers = []

    def announce(deployed):
        answers.append(httpx.get(f"{deployed.url}/healthz", trust_env=False).json())
        raise KeyboardInterrupt

    below = options.model_copy(update={"route_prefix": "/below"})
    running.serve_until_interrupted(bundle_folder, below, None, announce)
    assert [answer["status"] for answer in answers] == ["ok"]
    assert running.running() == []
