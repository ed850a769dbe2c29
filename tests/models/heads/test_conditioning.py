"""A text scales and shifts features channel by channel, and no text leaves them to the bit."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from eagleray.models.heads.conditioning import TextModulation, modulated
from eagleray.models.losses import marks_loss
from eagleray.models.multimodal import MultimodalModel
from eagleray.models.spec import MODALITIES, ModelSpec

SPEC = {
    "audio": None,
    "decoder": None,
    "vision": {
        **{"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2)},
        **{"pyramid_width": 8, "findings": ("nodule",), "reads_text": True},
    },
    "text": {"d_model": 16, "num_layers": 1, "num_heads": 2, "max_tokens": 6},
}


@pytest.fixture(scope="module")
def model() -> MultimodalModel:
    torch.manual_seed(0)
    return MultimodalModel(ModelSpec.model_validate(SPEC), 50, 0, ["segmentation"]).eval()


def batch(has_text: list[bool]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    rows = len(has_text)
    mask = torch.tensor(has_text)[:, None] & (torch.arange(6) < 5)
    present = torch.zeros(rows, len(MODALITIES), dtype=torch.bool)
    present[:, 0] = True
    return {
        "image": torch.randn(rows, 3, 32, 32, generator=generator),
        "marks": torch.randint(2, (rows, 32, 32), generator=generator),
        "tokens": torch.randint(3, 50, (rows, 6), generator=generator),
        "token_mask": mask,
        "present": present,
    }


def test_a_modulation_is_films():
    features = torch.randn(2, 3, 4, 5)
    scale, shift = torch.randn(2, 3), torch.randn(2, 3)
    found = modulated(features, torch.cat((scale - 1, shift), dim=1))
    expected = torch.einsum("bc,bchw->bchw", scale, features) + shift[..., None, None]
    torch.testing.assert_close(found, expected)


def test_it_reads_the_mean_of_valid_positions_and_nothing_of_others():
    module, hidden = TextModulation(6, 3), torch.randn(2, 4, 6)
    mask = torch.tensor([[True, True, False, False], [False, False, False, False]])
    found = module(hidden, mask)
    torch.testing.assert_close(found[0], module.linear(hidden[0, :2].mean(dim=0)))
    assert not found[1].any()
    torch.testing.assert_close(module(hidden.masked_fill(~mask[..., None], 1e3), mask), found)


def test_without_a_text_marks_are_those_of_a_model_that_reads_none(model):
    given = batch([True, False])
    with torch.no_grad():
        told = model.modulate(given["tokens"], given["token_mask"])
        by_text = model.segment(given["image"], modulation=told)
        alone = model.segment(given["image"])
    assert torch.equal(by_text[1], alone[1])
    assert not torch.allclose(by_text[0], alone[0], atol=1e-4)


def test_training_sees_what_serving_does(model):
    given = batch([True, False, True])
    with torch.no_grad():
        loss = model(given)["segmentation"]
        told = model.modulate(given["tokens"], given["token_mask"])
        likely = model.segment(given["image"], modulation=told)
    torch.testing.assert_close(loss, marks_loss(likely.logit(), given["marks"]))


def test_the_text_encoder_learns_from_rows_with_a_text_only(model):
    model.zero_grad()
    model(batch([False, False]))["segmentation"].sum().backward()
    assert not any(one.grad.any() for one in model.text.parameters() if one.grad is not None)
    model(batch([True, False]))["segmentation"].sum().backward()
    assert any(one.grad.any() for one in model.text.parameters() if one.grad is not None)


def test_reading_a_text_needs_an_encoder_of_texts():
    spec = ModelSpec.model_validate({**SPEC, "text": None})
    assert spec.missing_for("segmentation") == "text, which vision.reads_text is about"
    assert spec.parts_for(["segmentation"]) == {"vision"}
    with pytest.raises(ValidationError, match="reads_text"):
        ModelSpec.model_validate({**SPEC, "vision": {"reads_text": "often"}})
