"""A question describes nothing, and a text is a transcript only of speech in its language."""

import torch

from eagleray.models.multimodal import described, transcribed

MASK = torch.tensor([[True, True, False], [True, True, True], [True, False, False]])


def test_a_row_with_an_answer_describes_nothing():
    answers = torch.tensor([[False, False], [True, True], [False, False]])
    found = described({"token_mask": MASK, "answer_mask": answers})
    assert found.tolist() == [[True, True, False], [False] * 3, [True, False, False]]
    assert torch.equal(described({"token_mask": MASK}), MASK)


def test_a_text_in_another_language_than_the_speech_is_no_transcript():
    batch = {"token_mask": MASK, "is_transcript": torch.tensor([True, True, False])}
    assert transcribed(batch).tolist() == [[True, True, False], [True] * 3, [False] * 3]
    batch["answer_mask"] = torch.tensor([[True], [False], [False]])
    assert transcribed(batch).tolist() == [[False] * 3, [True] * 3, [False] * 3]
