import math
import pickle

import pytest
import torch

from eagleray.models.checks import check_batch
from eagleray.models.errors import TensorError
from eagleray.models.spec import AudioSpec, ModelSpec, TextSpec, VisionSpec

SPEC = ModelSpec(
    vision=VisionSpec(image_size=32, window_size=4),
    audio=AudioSpec(n_mels=16, max_frames=40),
    text=TextSpec(),
    decoder=None,
)


@pytest.fixture
def batch():
    return {
        "image": torch.zeros(2, 3, 32, 32),
        "mel": torch.zeros(2, 40, 16),
        "mel_mask": torch.ones(2, 40, dtype=torch.bool),
        "tokens": torch.tensor([[1, 5, 2, 0], [1, 19, 7, 2]]),
        "token_mask": torch.tensor([[True, True, True, False], [True] * 4]),
        "present": torch.ones(2, 3, dtype=torch.bool),
    }


def refused(batch):
    with pytest.raises(TensorError) as caught:
        check_batch(SPEC, 20, batch)
    return str(caught.value)


def test_a_good_batch_passes(batch):
    check_batch(SPEC, 20, batch)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_no_numbers_are_refused_by_row(batch, value):
    batch["image"][1, 0, 3, 3] = value
    assert (
        refused(batch) == "image: shape (2, 3, 32, 32) with NaN or infinity in row 1; expected finite values"
    )
    batch["image"][1] = 0
    batch["mel"][0, 3] = value
    assert refused(batch).startswith("mel: shape (2, 40, 16) with NaN or infinity in row 0")


def test_what_is_absent_or_masked_is_never_looked_at(batch):
    batch["image"][0] = math.nan
    batch["present"][0, 0] = False
    batch["mel"][1, 30:] = math.nan
    batch["mel_mask"][1, 30:] = False
    batch["token_mask"][1] = False
    batch["present"][1, 1] = False
    check_batch(SPEC, 20, batch)


def test_a_picture_smaller_than_a_window_is_refused(batch):
    batch["image"] = torch.zeros(2, 3, 3, 32)
    assert refused(batch) == "image: shape (2, 3, 3, 32); expected sides of 32, at least a window of 4"


def test_a_picture_of_another_size_is_refused(batch):
    batch["image"] = torch.zeros(2, 3, 32, 48)
    assert refused(batch) == "image: shape (2, 3, 32, 48); expected (rows, 3, 32, 32)"


def test_audio_of_no_length_is_refused(batch):
    batch["mel_mask"][1] = False
    expected = "mel_mask: shape (2, 40) with nothing in row 1; expected a frame in every row that has speech"
    assert refused(batch) == expected
    batch["mel"], batch["mel_mask"] = torch.zeros(2, 0, 16), torch.zeros(2, 0, dtype=torch.bool)
    assert refused(batch).startswith("mel_mask: shape (2, 0) with nothing in row 0")
    batch["mel"] = torch.zeros(2, 40, 8)
    assert refused(batch) == "mel: shape (2, 40, 8); expected (rows, 1 to 40 frames, 16 mel bins)"


def test_an_empty_caption_is_refused(batch):
    batch["token_mask"][0] = False
    expected = "token_mask: shape (2, 4) with nothing in row 0; expected a token in every row that has a text"
    assert refused(batch) == expected


@pytest.mark.parametrize("token", [-1, 20])
def test_a_token_outside_the_vocabulary_is_refused(batch, token):
    batch["tokens"][0, 1] = token
    assert refused(batch) == f"tokens: shape (2, 4) with token {token}; expected tokens from 0 to 19"


def test_an_answer_is_held_to_the_same(batch):
    batch["answer"], batch["answer_mask"] = (
        torch.tensor([[1, 30], [1, 2]]),
        torch.ones(2, 2, dtype=torch.bool),
    )
    assert refused(batch).startswith("answer: shape (2, 2) with token 30")


def test_the_error_crosses_process_borders():
    error = TensorError("mel", "shape (1,)", "(2,)")
    again = pickle.loads(pickle.dumps(error))
    assert (again.name, again.found, again.expected) == (error.name, error.found, error.expected)
    assert str(again) == str(error)
