"""The Open Inference Protocol over gRPC, by Triton's own client and without one, through Serve's proxy."""

import base64
import time

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from eagleray.actors.serving.guard import BUNDLE_HEADER
from eagleray.actors.serving.protocol import SERVICE, message
from eagleray.actors.serving.rpc import DETAILS, is_here
from eagleray.actors.serving.spec import LimitsSpec, ServingOptions
from eagleray.actors.serving.tokens import TokenFolder, issue

triton = pytest.importorskip("tritonclient.grpc")
pytestmark = pytest.mark.usefixtures("ray_cluster")
QUESTION = "What colour is the frog?"
FROGS = {"application": "frogs"}
MAX_BODY_BYTES = 20_000


@pytest.fixture(scope="module")
def client(served_frogs):
    with triton.InferenceServerClient(served_frogs.grpc) as client:
        yield client


@pytest.fixture(scope="module")
def guarded(served_frogs, bundle_folder, tmp_path_factory):
    """Metadata of whose may ask another application on the same port: as often as wanted, and seldom."""
    from ray import serve

    from eagleray.actors.serving import running

    folder = str(tmp_path_factory.mktemp("tokens"))
    found = {}
    for name, rate in (("often", None), ("seldom", 0.01)):
        token, sent = issue(name, ("embed",), requests_per_s=rate)
        TokenFolder(folder).add(token)
        found[name] = {"application": "guarded", "authorization": f"Bearer {sent}"}
    options = ServingOptions(
        application="guarded",
        route_prefix="/guarded",
        port=int(served_frogs.url.rpartition(":")[2]),
        grpc_port=int(served_frogs.grpc.rpartition(":")[2]),
        tokens=folder,
        limits=LimitsSpec(max_body_bytes=MAX_BODY_BYTES, max_inputs=3),
    )
    running.deploy(bundle_folder, options)
    yield found
    serve.delete("guarded")


def tensor(name, *values):
    sent = triton.InferInput(name, [len(values)], "BYTES")
    sent.set_data_from_numpy(np.array(values, dtype=object))
    return sent


def call(address, method, request, timeout=30, **metadata):
    """A call without anyone's client: its response, and what went with its end."""
    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(address, options) as channel:
        ask = channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=lambda sent: sent if isinstance(sent, bytes) else sent.SerializeToString(),
            response_deserializer=message(f"{method}Response").FromString,
        )
        found, ended = ask.with_call(request, timeout=timeout, metadata=list(metadata.items()))
    return found, {key: value for key, value in ended.trailing_metadata()}


def infer(model, **tensors):
    request = message("ModelInferRequest")(model_name=model)
    for name, values in tensors.items():
        given = request.inputs.add(name=name, datatype="BYTES", shape=[len(values)])
        given.contents.bytes_contents.extend(values)
    return request


def refused(address, request, timeout=30, **metadata):
    with pytest.raises(grpc.RpcError) as caught:
        call(address, "ModelInfer", request, timeout, **metadata)
    return caught.value


def test_the_server_and_its_models_describe_themselves(client):
    assert client.is_server_live(headers=FROGS)
    assert client.is_server_ready(headers=FROGS)
    assert client.get_server_metadata(headers=FROGS).name == "frogs"
    for name in ("embed", "search", "answer", "transcribe"):
        assert client.is_model_ready(name, headers=FROGS)
    found = client.get_model_metadata("answer", headers=FROGS)
    assert [one.name for one in found.inputs] == ["QUESTION", "IMAGE", "SPEECH"]
    assert {one.name: list(one.shape) for one in found.outputs} == {"ANSWER": [-1], "WEIGHTS": [-1, 3]}
    assert client.is_model_ready("embed", found.versions[0], headers=FROGS)
    assert not client.is_model_ready("fly", headers=FROGS)


def test_rows_are_embedded_as_by_the_bundle(client, loaded_bundle):
    texts = ["A frog.", "¿Una rana?"]
    given = [tensor("TEXT", *(text.encode() for text in texts))]
    wanted = [triton.InferRequestedOutput("EMBEDDING")]
    found = client.infer("embed", given, outputs=wanted, request_id="7", headers=FROGS)
    rows = loaded_bundle.embed("text", [loaded_bundle.prepare_text(text) for text in texts])
    np.testing.assert_allclose(found.as_numpy("EMBEDDING"), rows, atol=1e-6)
    assert found.get_response().id == "7"


def test_who_sends_typed_contents_gets_them(served_frogs, loaded_bundle):
    found, ended = call(served_frogs.grpc, "ModelInfer", infer("embed", TEXT=[b"A frog."]), **FROGS)
    (row,) = loaded_bundle.embed("text", [loaded_bundle.prepare_text("A frog.")])
    (told,) = found.outputs
    assert (told.name, told.datatype, list(told.shape)) == ("EMBEDDING", "FP32", [1, len(row)])
    np.testing.assert_allclose(told.contents.fp32_contents, row, atol=1e-6)
    assert not found.raw_output_contents
    assert ended[BUNDLE_HEADER] == served_frogs.bundle


def test_a_question_about_a_picture_and_speech_is_answered_as_over_http(client, served_frogs, http, png, wav):
    given = {"QUESTION": QUESTION.encode(), "IMAGE": png, "SPEECH": wav}
    sent = {name: base64.b64encode(data).decode() for name, data in (("image", png), ("speech", wav))}
    expected = http.post("/v1/answer", json={"question": QUESTION, **sent}).json()
    found = client.infer("answer", [tensor(name, value) for name, value in given.items()], headers=FROGS)
    assert found.as_numpy("ANSWER")[0].decode() == expected["answer"]
    np.testing.assert_allclose(found.as_numpy("WEIGHTS")[0], list(expected["weights"].values()), atol=1e-6)
    typed = infer("answer", **{name: [value] for name, value in given.items()})
    told, _ = call(served_frogs.grpc, "ModelInfer", typed, **FROGS)
    outputs = {one.name: one.contents for one in told.outputs}
    assert outputs["ANSWER"].bytes_contents[0].decode() == expected["answer"]


def test_pictures_are_searched_and_speech_is_transcribed(client, http, png, wav):
    found = client.infer("search", [tensor("IMAGE", png)], headers=FROGS)
    sent = {"image": base64.b64encode(png).decode(), "top_k": 10}
    expected = http.post("/v1/search", json=sent).json()["results"]
    assert [one.decode() for one in found.as_numpy("ID")] == [one["id"] for one in expected]
    np.testing.assert_allclose(found.as_numpy("SCORE"), [one["score"] for one in expected], atol=1e-6)
    said = client.infer("transcribe", [tensor("SPEECH", wav)], headers=FROGS)
    assert said.as_numpy("TEXT").shape == (1,)


MIXED = infer("embed", TEXT=[b"a"])
MIXED.raw_input_contents.append(b"\1\0\0\0a")


@pytest.mark.parametrize(
    ("request_", "code", "said"),
    [
        (infer("fly", TEXT=[b"a"]), "NOT_FOUND", "no model 'fly'"),
        (infer("embed/infer", TEXT=[b"a"]), "NOT_FOUND", "no model 'embed/infer'"),
        (infer("", TEXT=[b"a"]), "NOT_FOUND", "no model ''"),
        (infer("embed"), "INVALID_ARGUMENT", "inputs"),
        (infer("embed", WORDS=[b"a"]), "INVALID_ARGUMENT", "no input 'WORDS'"),
        (infer("embed", TEXT=[b"\xff"]), "INVALID_ARGUMENT", "not UTF-8"),
        (infer("embed", TEXT=[]), "INVALID_ARGUMENT", "no rows"),
        (infer("answer", IMAGE=[b"c"]), "INVALID_ARGUMENT", "answers questions"),
        (infer("transcribe", SPEECH=[b"RIFF no"]), "INVALID_ARGUMENT", "send WAV"),
        (infer("embed", TEXT=[b"a"] * 65), "RESOURCE_EXHAUSTED", "more than 64"),
        (MIXED, "INVALID_ARGUMENT", "raw_input_contents"),
        (b"\xff\xff", "INVALID_ARGUMENT", "no ModelInferRequest"),
    ],
)
def test_what_is_wrong_has_its_code(served_frogs, request_, code, said):
    error = refused(served_frogs.grpc, request_, **FROGS)
    assert error.code().name == code
    assert said in error.details()


def test_a_call_needs_a_token_with_the_models_scope(served_frogs, guarded):
    address, request, mine = served_frogs.grpc, infer("embed", TEXT=[b"a"]), guarded["often"]
    found, _ = call(address, "ModelInfer", request, **mine)
    assert found.outputs
    other = refused(address, infer("transcribe", SPEECH=[b"a"]), **mine)
    assert (other.code().name, other.details()) == (
        "PERMISSION_DENIED",
        "the token is for embed, not for transcribe (ask for one with that scope)",
    )
    without = refused(address, request, application="guarded")
    assert without.code() == grpc.StatusCode.UNAUTHENTICATED
    wrong = refused(address, request, application="guarded", authorization="Bearer eagleray.a.b")
    assert wrong.code() == grpc.StatusCode.UNAUTHENTICATED
    ready, _ = call(address, "ServerReady", message("ServerReadyRequest")(), application="guarded")
    assert ready.ready


def test_beyond_its_rate_a_token_is_told_when_to_come_back(served_frogs, guarded):
    mine, request = guarded["seldom"], infer("embed", TEXT=[b"a"])
    call(served_frogs.grpc, "ModelInfer", request, **mine)
    error = refused(served_frogs.grpc, request, **mine)
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    ended = dict(error.trailing_metadata())
    status, retry = Status.FromString(ended[DETAILS]), RetryInfo()
    assert (status.code, status.message) == (grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], error.details())
    assert status.details[0].Unpack(retry)
    assert 90 < retry.retry_delay.seconds <= 100


def test_a_message_that_is_too_large_is_refused(served_frogs, guarded):
    request = infer("embed", TEXT=[b"a" * MAX_BODY_BYTES])
    error = refused(served_frogs.grpc, request, **guarded["often"])
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than" in error.details()


def test_the_time_that_a_request_names_is_all_it_has(client):
    with pytest.raises(triton.InferenceServerException) as caught:
        client.infer("embed", [tensor("TEXT", b"A frog.")], timeout=1, headers=FROGS)  # a microsecond
    assert caught.value.status() in ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED")


def test_a_calls_deadline_ends_its_work(served_frogs):
    from ray import serve

    model = serve.get_deployment_handle("Model", "frogs")

    def texts():
        sizes = model.batch_sizes.remote().result(timeout_s=10)["text"]
        return sum(size * count for size, count in sizes.items())

    before = texts()
    error = refused(served_frogs.grpc, infer("answer", QUESTION=[QUESTION.encode()] * 64), 0.1, **FROGS)
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    time.sleep(0.3)
    stopped = texts()
    assert stopped - before < 64
    time.sleep(0.3)
    assert texts() == stopped


@pytest.mark.parametrize(
    ("peer", "here"),
    [
        ("ipv4:127.0.0.1:51000", True),
        ("ipv4:10.1.2.3:51000", False),
        ("ipv6:%5B::1%5D:51000", True),
        ("ipv6:[::ffff:127.0.0.1]:51000", True),
        ("ipv6:[::ffff:10.1.2.3]:51000", False),
        ("ipv6:%5Bfe80::1%25eth0%5D:51000", False),
        ("unix:/tmp/a", True),
        ("vsock:3:1", False),
    ],
)
def test_a_caller_on_this_machine_is_known_by_its_address(peer, here):
    assert is_here(peer) is here


def test_a_service_for_its_own_machine_answers_nobody_else(served_frogs, other_address):
    port = served_frogs.grpc.rpartition(":")[2]
    error = refused(f"{other_address}:{port}", infer("embed", TEXT=[b"a"]), **FROGS)
    assert error.code() == grpc.StatusCode.PERMISSION_DENIED
    assert "for its own machine" in error.details()
