"""Triton's own client works with a served bundle: the Open Inference Protocol, as JSON and as bytes."""

import base64
import json

import numpy as np
import pytest
import torch

from eagleray.actors.serving.guard import needed

triton = pytest.importorskip("tritonclient.http")
pytestmark = pytest.mark.usefixtures("ray_cluster")
QUESTION = "What colour is the frog?"


@pytest.fixture(scope="module")
def client(frogs):
    client = triton.InferenceServerClient(frogs.removeprefix("http://"), concurrency=1)
    yield client
    client.close()


def tensor(name, *values, binary=True):
    sent = triton.InferInput(name, [len(values)], "BYTES")
    sent.set_data_from_numpy(np.array(values, dtype=object), binary_data=binary)
    return sent


def test_the_server_and_its_models_describe_themselves(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata()["name"] == "frogs"
    for name in ("embed", "search", "answer", "transcribe", "classify"):
        assert client.is_model_ready(name)
    found = client.get_model_metadata("answer")
    assert [one["name"] for one in found["inputs"]] == ["QUESTION", "IMAGE", "SPEECH"]
    assert {one["name"]: one["shape"] for one in found["outputs"]} == {"ANSWER": [-1], "WEIGHTS": [-1, 3]}
    assert client.is_model_ready("embed", found["versions"][0])
    assert not client.is_model_ready("fly")


@pytest.mark.parametrize("binary", [True, False])
def test_rows_are_embedded_as_by_the_bundle(client, loaded_bundle, binary):
    texts = ["A frog.", "¿Una rana?"]
    wanted = [triton.InferRequestedOutput("EMBEDDING", binary_data=binary)]
    given = [tensor("TEXT", *(text.encode() for text in texts), binary=binary)]
    found = client.infer("embed", given, outputs=wanted, request_id="7")
    rows = loaded_bundle.embed("text", [loaded_bundle.prepare_text(text) for text in texts])
    np.testing.assert_allclose(found.as_numpy("EMBEDDING"), rows, atol=1e-6)
    assert found.get_response()["id"] == "7"


def test_a_question_about_a_picture_and_speech_is_answered(client, http, png, wav):
    given = [tensor("QUESTION", QUESTION.encode()), tensor("IMAGE", png), tensor("SPEECH", wav)]
    found = client.infer("answer", given)
    sent = {name: base64.b64encode(data).decode() for name, data in (("image", png), ("speech", wav))}
    expected = http.post("/v1/answer", json={"question": QUESTION, **sent}).json()
    assert found.as_numpy("ANSWER")[0].decode() == expected["answer"]
    np.testing.assert_allclose(found.as_numpy("WEIGHTS")[0], list(expected["weights"].values()), atol=1e-6)


def test_pictures_are_searched_and_speech_is_transcribed(client, http, png, wav):
    found = client.infer("search", [tensor("IMAGE", png)])
    sent = {"image": base64.b64encode(png).decode(), "top_k": 10}
    expected = http.post("/v1/search", json=sent).json()["results"]
    assert [one.decode() for one in found.as_numpy("ID")] == [one["id"] for one in expected]
    np.testing.assert_allclose(found.as_numpy("SCORE"), [one["score"] for one in expected], atol=1e-6)
    said = client.infer("transcribe", [tensor("SPEECH", wav)])
    assert said.as_numpy("TEXT").shape == (1,)


def test_a_picture_is_classified_as_by_torch_over_http_too(client, http, png, loaded_bundle, model):
    pixels = loaded_bundle.prepare_image(png)["image"]
    with torch.no_grad():
        likely = model.classify(torch.from_numpy(pixels[None])).softmax(dim=-1).numpy()
    found = client.infer("classify", [tensor("IMAGE", png, png)])
    np.testing.assert_allclose(found.as_numpy("PROBABILITY"), likely.repeat(2, axis=0), atol=1e-5)
    best = loaded_bundle.info.classes[int(likely[0].argmax())]
    assert [one.decode() for one in found.as_numpy("CATEGORY")] == [best, best]
    sent = {"image": base64.b64encode(png).decode(), "top_k": 2}
    told = http.post("/v1/classify", json=sent).json()["categories"]
    assert told[0]["category"] == best
    assert [one["probability"] for one in told] == pytest.approx(np.sort(likely[0])[::-1][:2], abs=1e-5)


@pytest.mark.parametrize(
    ("asked", "given", "said"),
    [
        ("fly", [tensor("TEXT", b"a")], "no model 'fly'"),
        ("embed", [tensor("WORDS", b"a")], "no input 'WORDS'"),
        ("embed", [tensor("TEXT", b"a"), tensor("IMAGE", b"b")], "give one of them"),
        ("embed", [tensor("TEXT", b"\xff")], "not UTF-8"),
        ("embed", [tensor("TEXT", b"")], "is empty"),
        ("answer", [tensor("QUESTION", b"a", b"b"), tensor("IMAGE", b"c")], "different numbers of rows"),
        ("answer", [tensor("IMAGE", b"c")], "no-question|answers questions"),
        ("search", [tensor("TEXT", b"a", b"b")], "one at a time"),
        ("transcribe", [tensor("SPEECH", b"RIFF no")], "send WAV"),
    ],
)
def test_what_is_wrong_is_said_as_the_client_reads_it(client, asked, given, said):
    with pytest.raises(triton.InferenceServerException, match=said):
        client.infer(asked, given)


@pytest.mark.parametrize(
    ("headers", "inputs", "tail"),
    [
        ({"inference-header-content-length": "9999"}, [], b""),
        ({"inference-header-content-length": "-1"}, [], b""),
        ({}, [], b""),
        ({}, [{"name": "TEXT", "shape": [1], "datatype": "FP32", "data": [1.0]}], b""),
        ({}, [{"name": "TEXT", "shape": [2], "datatype": "BYTES", "data": ["a"]}], b""),
        ({}, [{"name": "TEXT", "shape": [1], "datatype": "BYTES", "data": [1]}], b""),
        ({}, [{"name": "TEXT", "shape": [0], "datatype": "BYTES", "data": []}], b""),
        ({}, [{"name": "TEXT", "shape": [1], "datatype": "BYTES", "data": ["a\ud800"]}], b""),
        ({}, [{"name": "IMAGE", "shape": [1], "datatype": "BYTES", "data": ["!"]}], b""),
        (
            None,
            [{"name": "TEXT", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 9}}],
            b"1",
        ),
        (
            None,
            [{"name": "TEXT", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 6}}],
            b"\xff\0\0\0ab",
        ),
        (
            None,
            [{"name": "TEXT", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 2}}],
            b"ab",
        ),
    ],
)
def test_a_request_that_does_not_add_up_is_refused(http, headers, inputs, tail):
    head = json.dumps({"inputs": inputs}).encode()
    if headers is None:
        headers = {"inference-header-content-length": str(len(head))}
    response = http.post("/v2/models/embed/infer", content=head + tail, headers=headers)
    assert response.status_code in (400, 422)
    assert response.json()["error"]


def test_a_model_needs_the_scope_of_its_name():
    assert needed("/v2/models/embed/infer") == "embed"
    assert needed("/v2/models/answer/versions/ab12/infer") == "answer"
    assert needed("/v2/models/answer") is None
    assert needed("/v2/models/fly/infer") is None
    assert needed("/v1/chat/completions") == "answer"
