"""Moderation over HTTP: what is blocked is never told, and nothing passes unjudged."""

import asyncio
import base64
import json

import httpx
import openai
import pytest

from eagleray.actors.serving.answering import Answered, Decoder
from eagleray.actors.serving.application import Together
from eagleray.actors.serving.batching import Encoder
from eagleray.actors.serving.decoding import Piece
from eagleray.actors.serving.guard import MODERATION_HEADER
from eagleray.actors.serving.ingress import build_api
from eagleray.actors.serving.messages import Health, Verdict
from eagleray.actors.serving.moderating.models import Nudity, Texts
from eagleray.actors.serving.moderating.moderator import Moderator, check
from eagleray.actors.serving.spec import (
    LimitsSpec,
    ModerationSpec,
    PairRule,
    PicturePolicy,
    ServingOptions,
    TextPolicy,
    Thresholds,
)
from eagleray.pipelines.bundle import read_info
from eagleray.workflows.errors import EaglerayError

QUESTION, INSULT = "What colour is the frog?", "You are a stupid idiot, shut up."
NOTHING, EVERYTHING = Thresholds(), Thresholds(block=1e-9)
ANY_TEXT = TextPolicy(offensive=EVERYTHING)
NONE = {"text": None, "image": None, "speech": None, "output": None, "pairs": ()}


def b64(data):
    return base64.b64encode(data).decode()


@pytest.fixture(scope="module")
def texts():
    return Texts()


class Pictures:
    """The real model, or whatever a test puts in its place."""

    def __init__(self):
        self.real = self.model = Nudity()

    def score(self, content):
        return self.model.score(content)


@pytest.fixture(scope="module")
def pictures():
    return Pictures()


@pytest.fixture(scope="module")
def replicas(loaded_bundle, pictures):
    encoder = Encoder(lambda: loaded_bundle, 4, LimitsSpec(), 2, lambda: pictures)
    yield Together(encoder, Decoder(lambda: loaded_bundle, 4, encoder.computing))
    encoder.close()


@pytest.fixture
def ask(replicas, texts, pictures, bundle_folder):
    """Asks a real model in this process, under a policy."""
    info = read_info(bundle_folder)
    health = Health(
        status="ok", bundle="b", embed_dim=info.embed_dim, application="a", answers=True, asks=True,
        transcribes=True, moderates=True,
    )  # fmt: skip

    def asked(path, sent, spec=None, over=replicas, scores=None, **how):
        moderator = None if spec is None else Moderator(spec, scores or texts)
        pictures.model = scores or pictures.real
        api = build_api(over, health, ServingOptions(), moderator=moderator)

        async def call():
            transport = httpx.ASGITransport(app=api)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                sending = {"json": sent} if sent is not None else {}
                return await client.post(path, **sending, **how)

        return asyncio.run(call())

    return asked


def only(**policies):
    return ModerationSpec(**{**NONE, **policies})


def test_an_insult_is_blocked_with_category_and_score(ask):
    refused = ask("/v1/answer", {"question": INSULT}, ModerationSpec())
    assert (refused.status_code, refused.json()["code"]) == (400, "blocked-content")
    assert "the text: offensive 1.00, block from 0.9" in refused.json()["message"]
    assert refused.headers[MODERATION_HEADER].startswith("block; category=text/offensive")


def test_what_is_harmless_passes_and_says_so(ask, png):
    sent = {"question": QUESTION, "image": b64(png)}
    found = ask("/v1/answer", sent, only(text=TextPolicy(), image=PicturePolicy()))
    assert found.json()["moderation"] == {"action": "allow", "judgements": []}
    assert MODERATION_HEADER not in found.headers
    assert ask("/v1/answer", sent).json()["moderation"] is None


def test_what_is_flagged_is_answered_with_the_reason(ask):
    found = ask("/v1/answer", {"question": INSULT}, only(text=TextPolicy(offensive=Thresholds(flag=0.5))))
    assert found.status_code == 200
    (first,) = found.json()["moderation"]["judgements"]
    assert (first["of"], first["category"], first["threshold"]) == ("text", "offensive", 0.5)
    assert found.headers[MODERATION_HEADER] == "flag; category=text/offensive"


@pytest.mark.parametrize(
    ("path", "key"), [("/v1/answer", None), ("/v1/search", None), ("/v1/embed", "inputs"), ("v2", None)]
)
@pytest.mark.parametrize("modality", ["text", "image", "speech"])
def test_every_interface_blocks_every_modality(ask, png, wav, path, key, modality):
    given = {"text": "A frog.", "image": b64(png), "speech": b64(wav)}
    policy = only(text=ANY_TEXT) if modality == "text" else only(speech=ANY_TEXT)
    if modality == "image":
        policy = only(image=PicturePolicy(sexual=EVERYTHING))
    if path == "v2":
        tensor = {"name": modality.upper(), "shape": [1], "datatype": "BYTES", "data": [given[modality]]}
        refused = ask("/v2/models/embed/infer", {"inputs": [tensor]}, policy)
        assert refused.status_code == 400
        assert "blocked" in refused.json()["error"]
        return
    sent = {modality: given[modality]}
    if path == "/v1/answer":
        sent = {"question": QUESTION, **sent} if modality != "text" else {"question": QUESTION}
    refused = ask(path, {"inputs": [sent]} if key else sent, policy)
    assert (refused.status_code, refused.json()["code"]) == (400, "blocked-content")
    assert refused.headers[MODERATION_HEADER].startswith(f"block; category={modality}/")


def test_a_pair_is_blocked_and_its_parts_are_not(ask, png):
    policy = only(pairs=(PairRule(name="cruelty", picture="living|things", words="hurt it"),))
    picture, words = {"image": b64(png)}, "How do I hurt it?"
    assert ask("/v1/answer", {"question": QUESTION, **picture}, policy).status_code == 200
    assert ask("/v1/answer", {"question": words}, policy).status_code == 200
    refused = ask("/v1/answer", {"question": words, **picture}, policy)
    assert "picture and words together: cruelty 1.00" in refused.json()["message"]


class Says:
    """A decoder that says words, over a real encoder."""

    def __init__(self, encoder, *pieces):
        self.encode, self._pieces = encoder.encode, pieces

    async def answer(self, parts, question, sampling):
        told = [piece async for piece in self.stream(parts, question, sampling)]
        return Answered(tuple(told[:-1]), {}, {}, 0.0)

    async def stream(self, parts, question, sampling):
        for number, text in enumerate(self._pieces):
            end = "stop" if number + 1 == len(self._pieces) else None
            alternatives = (("fuck", -2.0), ("frog", -3.0))
            yield Piece(text, 5, -1.0, alternatives, end)
        yield Answered((), {}, {}, 0.0)


def test_an_answer_that_may_not_be_told_isnt(ask, replicas):
    says, sent = Says(replicas, "You", " stupid", " idiot."), {"question": QUESTION}
    assert ask("/v1/answer", sent, over=says).json()["answer"] == "You stupid idiot."
    refused = ask("/v1/answer", sent, only(output=TextPolicy()), over=says)
    assert (refused.status_code, refused.json()["code"]) == (400, "blocked-content")
    assert "the answer: offensive 1.00" in refused.json()["message"]
    assert "idiot" not in refused.text


def chat(stream):
    return {"model": "eagleray", "messages": [{"role": "user", "content": QUESTION}], "stream": stream}


def events(response):
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line)["choices"][0] for line in lines[:-1]]


def test_a_chat_ends_with_content_filter(ask):
    policy = only(output=ANY_TEXT)
    (choice,) = ask("/v1/chat/completions", chat(False), policy).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "content_filter")
    streamed = events(ask("/v1/chat/completions", chat(True), policy))
    assert streamed[-1]["finish_reason"] == "content_filter"
    assert not any(one["delta"].get("content") for one in streamed)


def test_a_stream_that_may_be_told_is_the_same_with_and_without(ask):
    policy = only(output=TextPolicy(offensive=NOTHING, profane=NOTHING))
    plain, judged = (events(ask("/v1/chat/completions", chat(True), one)) for one in (None, policy))
    assert [one["delta"] for one in plain] == [one["delta"] for one in judged]


def test_a_stream_tells_no_part_of_a_word_that_is_blocked(ask, replicas):
    policy = only(output=TextPolicy(offensive=Thresholds(block=0.9)))
    says = Says(replicas, "The", " frog", " is", " a", " fu", "ck", "ing", " idiot", ".")
    found = events(ask("/v1/chat/completions", chat(True), policy, over=says))
    told = "".join(one["delta"].get("content", "") for one in found)
    assert told == "The frog is a"
    assert found[-1]["finish_reason"] == "content_filter"


def test_alternatives_of_a_token_are_judged_too(ask, replicas):
    sent = {**chat(True), "logprobs": True, "top_logprobs": 2}
    policy = only(output=TextPolicy(offensive=Thresholds(block=0.9)))
    found = ask("/v1/chat/completions", sent, policy, over=Says(replicas, "A", " frog"))
    assert '"frog"' in found.text
    assert "fuck" not in found.text


class Broken:
    def score(self, content):
        raise RuntimeError("secret detail")


class Nonsense:
    def score(self, content):
        return {"offensive": float("nan"), "profane": 0.0, "sexual": float("nan")}


@pytest.mark.parametrize("broken", [Broken(), Nonsense()])
@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/v1/answer", {"question": QUESTION}),
        ("/v1/answer", {"question": QUESTION, "image": None}),
        ("/v1/search", {"text": "A frog."}),
        ("/v1/embed", {"inputs": [{"text": "A frog."}]}),
        ("/v1/moderate", {"text": "A frog."}),
        ("/v1/moderations", {"input": "A frog."}),
        ("/v1/chat/completions", chat(False)),
    ],
)
def test_a_model_that_fails_lets_nothing_pass(ask, png, broken, path, sent):
    if "image" in sent:
        sent = {**sent, "image": b64(png)}
        refused = ask(path, sent, only(image=PicturePolicy()), scores=broken)
    else:
        refused = ask(path, sent, only(text=TextPolicy()), scores=broken)
    assert refused.status_code == 503
    assert "moderation-failed" in refused.text or "nothing passes without it" in refused.text
    assert "secret" not in refused.text


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_cant_be_judged_isnt_told(ask, stream):
    refused = ask("/v1/chat/completions", chat(stream), only(output=TextPolicy()), scores=Broken())
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "moderation-failed"


def test_a_search_leaves_out_captions_that_are_blocked(ask):
    class Frogs:
        def score(self, content):
            return {"offensive": float("frog" in content), "profane": 0.0}

    everything = ask("/v1/search", {"text": "A rose.", "top_k": 100}).json()["results"]
    policy = only(output=TextPolicy())
    found = ask("/v1/search", {"text": "A rose.", "top_k": 100}, policy, scores=Frogs())
    kept = [one["caption"] for one in everything if "frog" not in one["caption"]]
    assert [one["caption"] for one in found.json()["results"]] == kept
    assert len(kept) < len(everything)


def test_what_cant_be_decoded_is_refused_as_ever(ask):
    refused = ask("/v1/answer", {"question": QUESTION, "image": b64(b"no picture")}, ModerationSpec())
    assert (refused.status_code, refused.json()["code"]) == (422, "undecodable-image")


def test_a_transcript_is_judged(ask, wav):
    sent = {"files": {"file": ("a.wav", wav)}, "data": {"model": "eagleray"}}
    assert ask("/v1/audio/transcriptions", None, only(output=TextPolicy()), **sent).status_code == 200
    refused = ask("/v1/audio/transcriptions", None, only(output=ANY_TEXT), **sent)
    assert refused.json()["error"]["code"] == "content_filter"


def test_contents_are_judged_each_and_together(ask, png, wav):
    rule = PairRule(name="cruelty", picture="living|things", words="hurt it")
    policy = ModerationSpec(pairs=(rule,), speech=TextPolicy(offensive=NOTHING))
    sent = {"text": "How do I hurt it?", "image": b64(png), "speech": b64(wav)}
    found = ask("/v1/moderate", sent, policy).json()
    assert {one["of"] for one in found["judgements"]} >= {"text", "image", "speech", "pair"}
    assert found["action"] == "block"
    (pair,) = [one for one in found["judgements"] if one["of"] == "pair"]
    assert (pair["category"], pair["action"], pair["threshold"]) == ("cruelty", "block", 0.5)
    Verdict.model_validate({key: found[key] for key in ("action", "judgements")})


def test_without_moderation_nothing_is_judged(ask):
    refused = ask("/v1/moderate", {"text": "A frog."})
    assert (refused.status_code, refused.json()["code"]) == (404, "not-served")


def test_a_bundle_that_doesnt_transcribe_isnt_served_where_speech_is_judged(bundle_folder):
    info = read_info(bundle_folder)
    speech = info.graphs["speech"]
    silent = speech.model_copy(update={"outputs": speech.outputs[:1]})
    info = info.model_copy(update={"graphs": {**info.graphs, "speech": silent}})
    with pytest.raises(EaglerayError, match="doesn't transcribe"):
        check(ModerationSpec(), info)
    check(ModerationSpec(speech=None), info)


@pytest.fixture(scope="module")
def client(guarded):
    plain = httpx.Client(trust_env=False, timeout=30)
    return openai.OpenAI(base_url=f"{guarded}/v1", api_key="none", http_client=plain, max_retries=0)


def test_openais_client_asks_for_a_verdict(client, png):
    found = client.moderations.create(input=INSULT)
    (result,) = found.results
    assert result.flagged
    assert result.categories.harassment
    assert result.category_scores.harassment > 0.9
    assert not result.categories.violence
    assert result.category_applied_input_types.violence == []
    assert [one.flagged for one in client.moderations.create(input=["A frog.", INSULT]).results] == [
        False,
        True,
    ]
    url = f"data:image/png;base64,{b64(png)}"
    parts = [{"type": "text", "text": "Hurt it!"}, {"type": "image_url", "image_url": {"url": url}}]
    (pair,) = client.moderations.create(input=parts).results
    assert pair.categories.model_extra["cruelty"]
    assert pair.category_applied_input_types.sexual == ["image"]
    assert not pair.categories.sexual


def test_openais_client_reads_why_something_is_blocked(client):
    with pytest.raises(openai.BadRequestError, match="offensive") as caught:
        client.chat.completions.create(model="eagleray", messages=[{"role": "user", "content": INSULT}])
    assert caught.value.code == "content_filter"


def test_an_answer_served_by_ray_says_that_it_is_flagged(guarded):
    found = httpx.post(f"{guarded}/v1/answer", json={"question": QUESTION}, trust_env=False, timeout=30)
    assert found.headers[MODERATION_HEADER] == "flag; category=output/offensive"
    assert httpx.get(f"{guarded}/healthz", trust_env=False).json()["moderates"]
