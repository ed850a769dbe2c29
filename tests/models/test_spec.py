import pytest
from pydantic import ValidationError

from eagleray.models.spec import PRESETS, AudioSpec, DecoderSpec, ModelSpec, TextSpec, VisionSpec


def test_tiny_is_the_default():
    assert ModelSpec(preset="tiny") == ModelSpec()


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_sets_what_is_not_given(preset):
    chosen = ModelSpec.model_validate({"preset": preset, "text": {"num_layers": 5}, "embed_dim": 7})
    assert chosen.text.num_layers == 5
    assert chosen.embed_dim == 7
    assert chosen.text.d_model == ModelSpec.model_validate({"preset": preset}).text.d_model
    assert chosen.vision == ModelSpec.model_validate({"preset": preset}).vision


@pytest.mark.parametrize("preset", PRESETS)
def test_a_spec_survives_json(preset):
    spec = ModelSpec.model_validate({"preset": preset, "audio": {"kernel_size": 3}})
    assert ModelSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (VisionSpec, {"depths": (2, 2)}, "num_heads has 3 scales, depths has 2"),
        (VisionSpec, {"num_heads": (3, 4, 8)}, "3 heads do not divide a width of 32"),
        (VisionSpec, {"depths": (2, 0, 2)}, "at least 1"),
        (VisionSpec, {"patch_size": 65}, "patch_size 65 exceeds image_size 64"),
        (TextSpec, {"num_heads": 5}, "5 heads do not divide a width of 128"),
        (AudioSpec, {"num_bands": 3}, "num_bands 3 does not divide n_mels 64"),
        (AudioSpec, {"kernel_size": 4}, "kernel_size 4 is even"),
        (AudioSpec, {"num_heads": 5}, "5 heads do not divide a width of 96"),
        (DecoderSpec, {"num_heads": 5}, "5 heads do not divide a width of 128"),
        (DecoderSpec, {"heads": 4}, "Extra inputs"),
        (ModelSpec, {"preset": "huge"}, "'tiny', 'small' or 'base'"),
    ],
)
def test_a_size_that_cannot_be_is_refused_with_its_numbers(kind, fields, message):
    with pytest.raises(ValidationError, match=message):
        kind(**fields)
