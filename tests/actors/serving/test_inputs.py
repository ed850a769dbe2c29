"""What a request carries becomes what a graph takes, or a refusal that says why."""

import base64

import pytest
from pydantic import ValidationError

from eagleray.actors.serving.inputs import prepare
from eagleray.actors.serving.messages import Input, Refusal


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_a_data_uri_is_the_same_picture_as_its_base64(loaded_bundle, png):
    plain = prepare(loaded_bundle, Input(image=b64(png)))
    uri = prepare(loaded_bundle, Input(image="data:image/png;charset=x;base64," + b64(png)))
    assert plain[0] == uri[0] == "image"
    assert (plain[1]["image"] == uri[1]["image"]).all()


def test_base64_may_be_broken_into_lines(loaded_bundle, png):
    folded = base64.encodebytes(png).decode()
    assert prepare(loaded_bundle, Input(image=folded))[0] == "image"


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ({"text": " \n"}, 422, "empty-text"),
        ({"image": "no base64!"}, 400, "invalid-base64"),
        ({"image": "données"}, 400, "invalid-base64"),
        ({"image": "data:image/png,plain"}, 400, "invalid-data-uri"),
        ({"image": "data:text/html;base64,aGVsbG8="}, 415, "unsupported-media-type"),
        ({"speech": "data:image/png;base64,aGVsbG8="}, 415, "unsupported-media-type"),
        ({"image": "data:image/png;base64,"}, 422, "empty-image"),
        ({"image": b64(b"hello")}, 422, "undecodable-image"),
        ({"speech": b64(b"hello")}, 422, "undecodable-speech"),
    ],
)
def test_bad_input_is_refused_with_its_own_code(loaded_bundle, query, status, code):
    answer = prepare(loaded_bundle, Input(**query))
    assert isinstance(answer, Refusal)
    assert (answer.status, answer.problem.code) == (status, code)
    assert answer.problem.message
    assert answer.problem.remedy


def test_a_truncated_picture_is_refused(loaded_bundle, png):
    answer = prepare(loaded_bundle, Input(image=b64(png[: len(png) // 2])))
    assert isinstance(answer, Refusal)
    assert answer.status == 422


@pytest.mark.parametrize("query", [{}, {"text": "a", "image": "b"}, {"text": ""}])
def test_an_input_is_of_exactly_one_modality(query):
    with pytest.raises(ValidationError):
        Input(**query)
