"""What a request carries becomes what a graph takes, or a refusal that says why."""

import base64

import pytest
from pydantic import ValidationError

from eagleray.actors.serving.inputs import open_media, read_text
from eagleray.actors.serving.messages import Input, Refusal
from eagleray.actors.serving.spec import LimitsSpec


@pytest.fixture
def opened(loaded_bundle):
    def open_(task, sent, **limits):
        return open_media(task, sent, loaded_bundle.info.preparation, LimitsSpec(**limits))

    return open_


@pytest.fixture
def tokens(loaded_bundle):
    def read(text, **limits):
        preparation = loaded_bundle.info.preparation
        return read_text(text, loaded_bundle.tokenizer, preparation, LimitsSpec(**limits))

    return read


def test_a_data_uri_is_the_same_picture_as_its_base64(opened, png):
    plain = opened("image", base64.b64encode(png))
    uri = opened("image", b"data:image/png;charset=x;base64," + base64.b64encode(png))
    assert (plain["image"] == uri["image"]).all()


def test_base64_may_be_broken_into_lines(opened, png):
    assert "image" in opened("image", base64.encodebytes(png))


@pytest.mark.parametrize(
    ("task", "sent", "status", "code"),
    [
        ("image", b"no base64!", 400, "invalid-base64"),
        ("image", "données".encode(), 400, "invalid-base64"),
        ("image", b"data:image/png,plain", 400, "invalid-data-uri"),
        ("image", b"data:text/html;base64,aGVsbG8=", 415, "unsupported-media-type"),
        ("speech", b"data:image/png;base64,aGVsbG8=", 415, "unsupported-media-type"),
        ("image", b"data:image/png;base64,", 422, "empty-image"),
        ("image", base64.b64encode(b"hello"), 422, "undecodable-image"),
        ("speech", base64.b64encode(b"hello"), 422, "undecodable-speech"),
        ("stretches", b"hello", 422, "undecodable-speech"),
    ],
)
def test_bad_input_is_refused_with_its_own_code(opened, task, sent, status, code):
    answer = opened(task, sent)
    assert isinstance(answer, Refusal)
    assert (answer.status, answer.problem.code) == (status, code)
    assert answer.problem.message
    assert answer.problem.remedy


def test_a_truncated_picture_is_refused(opened, png):
    answer = opened("image", base64.b64encode(png[: len(png) // 2]))
    assert isinstance(answer, Refusal)
    assert answer.status == 422


def test_what_says_itself_that_it_is_too_large_is_not_decoded(opened, png, wav):
    for task, sent, limits, code in (
        ("image", png, {"max_pixels": 8}, "image-too-large"),
        ("speech", wav, {"max_speech_s": 0.01}, "speech-too-long"),
    ):
        answer = opened(task, base64.b64encode(sent), **limits)
        assert (answer.status, answer.problem.code) == (413, code)


@pytest.mark.parametrize(
    ("text", "limits", "status", "code"),
    [
        (" \n", {}, 422, "empty-text"),
        ("a frog " * 10, {"max_text_tokens": 8}, 413, "text-too-long"),
        ("x" * 10_000, {"max_text_tokens": 8}, 413, "text-too-long"),
    ],
)
def test_a_text_is_refused_with_its_own_code(tokens, text, limits, status, code):
    answer = tokens(text, **limits)
    assert (answer.status, answer.problem.code) == (status, code)


def test_a_text_is_read_as_the_corpus_was(tokens, loaded_bundle):
    expected = loaded_bundle.prepare_text("A frog.")
    for name, array in tokens("A frog.").items():
        assert (array == expected[name]).all()


@pytest.mark.parametrize("query", [{}, {"text": "a", "image": "b"}, {"text": ""}])
def test_an_input_is_of_exactly_one_modality(query):
    with pytest.raises(ValidationError):
        Input(**query)
