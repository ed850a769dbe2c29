"""OpenAI's own client works unchanged with a bundle that a real Ray Serve serves."""

import base64
import json

import httpx
import numpy as np
import openai
import pytest

from eagleray.actors.serving.decoding import AnswerBatch, Sampling
from eagleray.pipelines.bundle import split
from eagleray.pipelines.media.prepare import prepare_stretches

from ...pipelines.conftest import sound
from .conftest import NAME

pytestmark = pytest.mark.usefixtures("ray_cluster")

QUESTION = "What colour is the frog?"


@pytest.fixture(scope="module")
def client(frogs):
    plain = httpx.Client(trust_env=False, timeout=30)
    return openai.OpenAI(base_url=f"{frogs}/v1", api_key="none", http_client=plain, max_retries=0)


@pytest.fixture(scope="module")
def expected(loaded_bundle, png, wav):
    """The answer of the bundle, run directly."""
    rows = {
        "text": loaded_bundle.encode("text", [loaded_bundle.prepare_text(QUESTION)])[0],
        "image": loaded_bundle.encode("image", [loaded_bundle.prepare_image(png)])[0],
        "speech": loaded_bundle.encode("speech", [loaded_bundle.prepare_speech(wav)])[0],
    }
    batch = AnswerBatch(loaded_bundle)
    (answer,) = batch.join(loaded_bundle.gather([rows], [0]), [Sampling(batch.max_tokens)])
    while batch.answers:
        batch.step()
    return answer


def b64(data):
    return base64.b64encode(data).decode()


def messages(png, wav, question=QUESTION):
    return [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": question},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64(png)}"}},
                {"type": "input_audio", "input_audio": {"data": b64(wav), "format": "wav"}},
            ],
        }
    ]


def test_the_served_model_is_listed(client):
    assert [one.id for one in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME


def test_embeddings_are_the_bundles(client, loaded_bundle):
    texts = ["A frog.", "A drum."]
    found = client.embeddings.create(model=NAME, input=texts)
    rows = loaded_bundle.embed("text", [loaded_bundle.prepare_text(text) for text in texts])
    np.testing.assert_allclose([one.embedding for one in found.data], rows, atol=1e-6)
    plain = client.embeddings.create(model=NAME, input=texts[1], encoding_format="float")
    np.testing.assert_allclose(plain.data[0].embedding, rows[1], atol=1e-6)


def test_an_answer_is_the_bundles(client, expected, png, wav):
    made = client.chat.completions.create(
        model=NAME, messages=messages(png, wav), logprobs=True, top_logprobs=3
    )
    (choice,) = made.choices
    assert choice.message.content == expected.text.strip()
    assert choice.finish_reason == expected.pieces[-1].end
    assert made.usage.completion_tokens == len(expected.pieces)
    log_probs = [one.logprob for one in choice.logprobs.content]
    np.testing.assert_allclose(log_probs, [piece.log_prob for piece in expected.pieces], atol=1e-3)
    assert all(len(one.top_logprobs) == 3 for one in choice.logprobs.content)
    assert all(one.top_logprobs[0].logprob >= one.top_logprobs[1].logprob for one in choice.logprobs.content)


def test_a_stream_tells_the_same_answer_in_pieces(client, expected, png, wav):
    stream = client.chat.completions.create(
        model=NAME, messages=messages(png, wav), stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    told = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert "".join(piece or "" for piece in told).strip() == expected.text.strip()
    assert sum(bool(piece) for piece in told) > 1
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == expected.pieces[-1].end
    assert chunks[-1].usage.completion_tokens == len(expected.pieces)


def test_choices_are_drawn_apart_and_a_seed_repeats_them(client, png, wav):
    def drawn():
        made = client.chat.completions.create(
            model=NAME, messages=messages(png, wav), n=3, temperature=1.5, seed=7, max_completion_tokens=6
        )
        return [choice.message.content for choice in made.choices]

    first = drawn()
    assert first == drawn()
    assert len(set(first)) > 1


def test_a_picture_from_earlier_is_still_seen(client, expected, png, wav):
    shown = messages(png, wav, "What is this?")
    later = [*shown, {"role": "assistant", "content": "A frog."}, {"role": "user", "content": QUESTION}]
    made = client.chat.completions.create(model=NAME, messages=later)
    assert made.choices[0].message.content == expected.text.strip()


@pytest.mark.parametrize("shape", ["json", "text", "srt", "vtt", "verbose_json"])
def test_a_transcript_of_any_length_has_every_stretch(client, loaded_bundle, shape):
    long = sound(330, 1.5, "WAV")  # the model hears 0.63 s at once
    stretches = split(prepare_stretches(long, loaded_bundle.info.preparation))
    rows = loaded_bundle.encode("speech", stretches)
    said = [loaded_bundle.spell(row["transcript_log_probs"]).strip() for row in rows]
    assert len(said) == 3
    found = client.audio.transcriptions.create(model=NAME, file=("a.wav", long), response_format=shape)
    if shape == "json":
        assert found.text == " ".join(text for text in said if text)
    elif shape == "verbose_json":
        assert [one.text for one in found.segments] == said
        assert found.duration == pytest.approx(1.5)
        assert [one.start for one in found.segments] == pytest.approx([0, 0.63, 1.26])
    elif shape != "text":
        assert found.count("-->") == 3


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda c: c.embeddings.create(model="gpt", input="a"), openai.NotFoundError, f"ask for '{NAME}'"),
        (
            lambda c: c.embeddings.create(model=NAME, input="a", dimensions=2),
            openai.BadRequestError,
            "16 numbers",
        ),
        (
            lambda c: c.chat.completions.create(model=NAME, messages=[{"role": "user", "content": ""}]),
            openai.BadRequestError,
            "said and showed nothing",
        ),
        (
            lambda c: c.chat.completions.create(
                model=NAME,
                messages=[
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}}],
                    }
                ],
            ),
            openai.BadRequestError,
            "no address is fetched",
        ),
        (
            lambda c: c.chat.completions.create(
                model=NAME, messages=[{"role": "system", "content": "Be kind."}]
            ),
            openai.BadRequestError,
            "follows no instructions",
        ),
        (
            lambda c: c.chat.completions.create(
                model=NAME, messages=[{"role": "user", "content": "a"}], tools=[{"type": "function"}]
            ),
            openai.UnprocessableEntityError,
            "tools",
        ),
        (
            lambda c: c.audio.transcriptions.create(model=NAME, file=("a.wav", b"RIFF nothing")),
            openai.UnprocessableEntityError,
            "send WAV",
        ),
    ],
)
def test_what_is_refused_has_the_shape_that_the_client_reads(client, call, error, said):
    with pytest.raises(error, match=said) as caught:
        call(client)
    assert caught.value.body["code"]


def test_a_stream_is_refused_before_it_begins(http):
    asked = {"model": NAME, "messages": [{"role": "user", "content": "a"}], "stream": True, "n": 2}
    response = http.post("/v1/chat/completions", json=asked)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "unsupported"


def test_an_answer_says_where_it_was_found(http, expected, png, wav):
    asked = {"question": QUESTION, "image": b64(png), "speech": b64(wav)}
    found = http.post("/v1/answer", json=asked).json()
    assert found["answer"] == expected.text.strip()
    assert sum(found["weights"].values()) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(np.ravel(found["attention"]["image"]), expected.maps["image"], atol=1e-5)
    assert len(found["attention"]["image"]) == len(found["attention"]["image"][0])
    assert all(took >= 0 for took in found["timings_ms"].values())
    assert found["bundle"] == http.get("/healthz").json()["bundle"]


def test_an_answer_about_a_question_alone_looks_at_nothing_else(http):
    found = http.post("/v1/answer", json={"question": QUESTION}).json()
    assert found["weights"] == {"image": 0, "text": pytest.approx(1), "speech": 0}
    assert found["attention"]["image"] is None


def test_a_model_that_answers_needs_a_question(http, png):
    refused = http.post("/v1/answer", json={"image": b64(png)})
    assert (refused.status_code, refused.json()["code"]) == (422, "no-question")


def test_whoever_goes_away_frees_the_decoder(http, png, wav):
    asked = {"model": NAME, "messages": messages(png, wav), "stream": True, "temperature": 1.0}
    for seed in range(12):  # more than the batch has rows
        with http.stream("POST", "/v1/chat/completions", json=asked | {"seed": seed}) as response:
            assert response.status_code == 200
            next(response.iter_lines())
    whole = http.post("/v1/chat/completions", content=json.dumps(asked | {"stream": False}), headers={
        "content-type": "application/json"})  # fmt: skip
    assert whole.status_code == 200
