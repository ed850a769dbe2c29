"""The HTTP interface, over an encoder that needs neither Ray nor a model."""

import asyncio

import httpx
import numpy as np
import pytest

from eagleray.actors.serving.deadlines import MILLISECONDS, SECONDS
from eagleray.actors.serving.guard import BUNDLE_HEADER, NEEDS, check_nesting, needed
from eagleray.actors.serving.ingress import build_api
from eagleray.actors.serving.messages import Health, Problem, refusal
from eagleray.actors.serving.model import Model
from eagleray.actors.serving.problems import REFUSAL_HEADER
from eagleray.actors.serving.spec import LimitsSpec, ServingOptions
from eagleray.actors.serving.tokens import SCOPES
from eagleray.pipelines.index import Hit

DIGEST = "d" * 64
OPTIONS = ServingOptions(
    limits=LimitsSpec(max_inputs=3, max_body_bytes=2000, request_timeout_s=0.2, max_nesting=4)
)
LIMITS = OPTIONS.limits


class FakeEncoder:
    """Answers by the text it is asked."""

    async def embed(self, query):
        if query.text == "overloaded":
            return refusal(503, "overloaded", "full", "wait", retry_after_s=1)
        if query.text == "slow":
            await asyncio.sleep(5)
        if query.text == "broken":
            raise RuntimeError("secret detail")
        return np.full(4, len(query.text), np.float32)

    async def search(self, query, top_k):
        return [Hit("p1", "A frog.", "animals", "frog.png", 0.5)][:top_k]


def ask(method, path, **request):
    api = build_api(
        FakeEncoder(), Health(status="ok", bundle=DIGEST, embed_dim=4, application="test"), OPTIONS
    )

    async def call():
        transport = httpx.ASGITransport(app=api)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **request)

    return asyncio.run(call())


def embed(*texts):
    return ask("POST", "/v1/embed", json={"inputs": [{"text": text} for text in texts]})


def test_embeddings_come_in_the_order_of_the_inputs():
    assert embed("a", "bbb", "cc").json() == {
        "embeddings": [[1.0] * 4, [3.0] * 4, [2.0] * 4],
        "dim": 4,
        "bundle": DIGEST,
    }


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "invalid-json"),
        ({"content": b"text"}, 415, "unsupported-media-type"),
        ({"data": {"inputs": "a"}}, 415, "unsupported-media-type"),
        ({"json": {"inputs": [{"text": "a" * 3000}]}}, 413, "body-too-large"),
        ({"json": {"inputs": [{"text": "a"}] * 4}}, 413, "too-many-inputs"),
        ({"json": {}}, 422, "invalid-request"),
        ({"json": {"inputs": []}}, 422, "invalid-request"),
        ({"json": {"inputs": [{"txt": "a"}]}}, 422, "invalid-request"),
        ({"json": {"inputs": [{"text": "overloaded"}]}}, 503, "overloaded"),
        ({"json": {"inputs": [{"text": "slow"}]}}, 504, "timeout"),
        ({"json": {"inputs": [{"text": "broken"}]}}, 500, "internal-error"),
        ({"json": [[[[[]]]]]}, 400, "nested-too-deep"),
        ({"json": {"inputs": [{"text": "a"}]}, "headers": {MILLISECONDS: "soon"}}, 400, "invalid-timeout"),
        ({"json": {"inputs": [{"text": "a"}]}, "headers": {SECONDS: "-1"}}, 400, "invalid-timeout"),
    ],
)
def test_every_error_has_one_shape_a_status_and_the_bundle(request_, status, code):
    response = ask("POST", "/v1/embed", **request_)
    assert response.status_code == status
    assert Problem.model_validate(response.json()).code == response.headers[REFUSAL_HEADER] == code
    assert response.headers[BUNDLE_HEADER] == DIGEST


def test_a_body_without_a_declared_length_is_bounded_too():
    async def chunks():
        for _ in range(30):
            yield b"x" * 100

    response = ask("POST", "/v1/embed", content=chunks(), headers={"content-type": "application/json"})
    assert response.json()["code"] == "body-too-large"


@pytest.mark.parametrize(
    ("body", "is_too_deep"),
    [
        (b"[" * 4 + b"]" * 4, False),
        (b"[" * 5 + b"]" * 5, True),
        (b'{"a":' * 5 + b"1" + b"}" * 5, True),
        (b'["[[[[[[", "\\"[[[[", {}, {}, {}, {}, []]', False),
        (b"[],[],[],[],[],[]", False),
        (b'"' + b"[" * 100, False),
    ],
)
def test_what_lies_too_deep_is_refused_before_it_is_parsed(body, is_too_deep):
    assert (check_nesting(body, LIMITS) is not None) == is_too_deep


def test_a_body_that_does_not_come_ends_with_the_requests_time():
    async def chunks():
        yield b"{"
        await asyncio.sleep(5)

    response = ask("POST", "/v1/embed", content=chunks(), headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["code"]) == (408, "body-too-slow")


def test_an_error_names_the_input_it_is_about():
    assert embed("a", "overloaded").json()["message"] == "inputs.1: full"
    response = ask("POST", "/v1/embed", json={"inputs": [{"text": "a"}, {"text": "a", "image": "b"}]})
    assert response.json()["message"].startswith("inputs.1: give exactly one of")


def test_overload_says_when_to_come_back():
    assert embed("overloaded").headers["retry-after"] == "1"


def test_a_failure_gives_no_internals_away():
    assert "secret" not in embed("broken").text


def test_an_unknown_path_and_method_have_the_shape_of_errors():
    assert Problem.model_validate(ask("GET", "/nope").json()).code == "not-found"
    assert Problem.model_validate(ask("GET", "/v1/embed").json()).code == "method-not-allowed"


def test_openapi_describes_the_routes_and_their_errors():
    paths = ask("GET", "/openapi.json").json()["paths"]
    assert {"/v1/embed", "/v1/search", "/healthz"} <= set(paths)
    assert {"200", "400", "413", "415", "422", "503"} <= set(paths["/v1/embed"]["post"]["responses"])
    assert ask("GET", "/docs").status_code == 200


def test_health_names_the_bundle():
    response = ask("GET", "/healthz")
    assert response.json()["bundle"] == response.headers[BUNDLE_HEADER] == DIGEST


def test_search_takes_a_modality_and_how_many():
    response = ask("POST", "/v1/search", json={"text": "frog", "top_k": 1})
    assert response.json()["results"] == [
        {"id": "p1", "caption": "A frog.", "category": "animals", "score": 0.5}
    ]
    assert ask("POST", "/v1/search", json={"text": "frog", "top_k": 0}).status_code == 422


def test_every_path_of_the_model_has_its_scope():
    health = Health(status="ok", bundle=DIGEST, embed_dim=4, application="test")
    paths = build_api(FakeEncoder(), health, OPTIONS).openapi()["paths"]
    asked = [path for path, methods in paths.items() if "post" in methods]
    assert set(NEEDS) - {"/v1/drift"} < set(asked)
    for path in asked:
        assert needed(path.format(name="answer", asked="1")) in SCOPES


def test_whoever_watches_is_answered_however_much_is_in_hand():
    health = Health(status="ok", bundle=DIGEST, embed_dim=4, application="test")
    model = Model(FakeEncoder(), health, LIMITS)
    model._in_hand = LIMITS.max_queued_requests
    assert {scope for scope in SCOPES if model.overloaded(scope) is None} == {"watch"}
