import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Swinv2Config, Swinv2ForImageClassification

from eagleray.models.errors import TensorError
from eagleray.models.spec import VisionSpec
from eagleray.models.weights import SwinV2, load_swin_v2

TINY = {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]}
BASE = {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]}
LARGE = {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48]}
SMALL = {"embed_dim": 32, "depths": [2, 2, 2], "num_heads": [2, 4, 8]}


def peer(seed=0, **sizes):
    """A model of `transformers` whose biases, scales and norms are none of the usual zeros and ones."""
    torch.manual_seed(seed)
    model = Swinv2ForImageClassification(Swinv2Config(num_labels=10, **sizes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif name.endswith("logit_scale"):
                parameter.add_(torch.randn_like(parameter))
            else:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return model


def same_logits(theirs, folder, image_size, **options):
    theirs.save_pretrained(folder)
    ours = load_swin_v2(folder, **options)
    images = torch.randn(2, 3, image_size, image_size)
    with torch.no_grad():
        expected, found = theirs(images).logits, ours(images)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    return ours


@pytest.mark.parametrize(
    ("sizes", "image_size", "window_size"),
    [
        pytest.param(TINY, 64, 8, id="tiny"),
        pytest.param(TINY, 96, 7, id="tiny, windows that don't divide the map"),
        pytest.param(BASE, 64, 4, id="base"),
        pytest.param(LARGE, 32, 8, id="large"),
        pytest.param(SMALL, 224, 7, id="224 with windows of 7"),
        pytest.param(SMALL, 192, 12, id="192 with windows of 12"),
        pytest.param(SMALL, 90, 5, id="odd picture and window"),
        pytest.param(SMALL, 101, 8, id="a picture that patches don't divide"),
        pytest.param(SMALL, 50, 16, id="map smaller than a window"),
        pytest.param(SMALL, 36, 4, id="odd maps"),
        pytest.param(SMALL, 33, 3, id="odd all over"),
    ],
)
def test_logits_are_those_of_transformers(tmp_path, sizes, image_size, window_size):
    theirs = peer(image_size=image_size, window_size=window_size, **sizes)
    same_logits(theirs, tmp_path, image_size)


def test_a_window_larger_than_the_pretrained_one_answers_as_transformers(tmp_path):
    theirs = peer(image_size=96, window_size=12, pretrained_window_sizes=[6, 6, 3], **SMALL)
    same_logits(theirs, tmp_path, 96)


def test_weights_go_over_to_larger_pictures_and_windows(tmp_path):
    theirs = peer(image_size=64, window_size=4, **SMALL)
    wider = Swinv2Config(
        num_labels=10, image_size=128, window_size=8, pretrained_window_sizes=[4, 4, 4], **SMALL
    )
    moved = Swinv2ForImageClassification(wider).eval()
    moved.load_state_dict(theirs.state_dict())
    theirs.save_pretrained(tmp_path)
    ours = load_swin_v2(tmp_path, image_size=128, window_size=8)
    images = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), moved(images).logits, atol=1e-5, rtol=0)


def in_the_authors_naming(weights, window, image_size):
    """The state dict that the authors' repository would save for weights in the naming of transformers."""
    found = {}
    pairs = (
        ("swinv2.embeddings.patch_embeddings.projection.", "patch_embed.proj."),
        ("swinv2.embeddings.norm.", "patch_embed.norm."),
        ("swinv2.encoder.", ""),
        ("swinv2.layernorm.", "norm."),
        ("classifier.", "head."),
        ("attention.self.continuous_position_bias_mlp.", "attn.cpb_mlp."),
        ("attention.self.", "attn."),
        ("attention.output.dense.", "attn.proj."),
        ("layernorm_before.", "norm1."),
        ("layernorm_after.", "norm2."),
        ("intermediate.dense.", "mlp.fc1."),
        ("output.dense.", "mlp.fc2."),
        ("attn.query.bias", "attn.q_bias"),
        ("attn.value.bias", "attn.v_bias"),
    )
    for name, tensor in weights.items():
        for theirs, authors in pairs:
            name = name.replace(theirs, authors)
        found[name] = tensor
    for name in [name for name in found if name.endswith("attn.query.weight")]:
        parts = [found.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        found[name.replace("query", "qkv")] = torch.cat(parts)
        steps = torch.arange(1 - window, window).float() / (window - 1) * 8
        steps = steps.sign() * torch.log2(steps.abs() + 1) / 3
        table = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1)[None]
        found[name.replace("query.weight", "relative_coords_table")] = table
    found["layers.0.blocks.1.attn_mask"] = torch.zeros((image_size // 4 // window) ** 2, window**2, window**2)
    return found


def test_both_namings_give_the_same_module(tmp_path):
    theirs = peer(image_size=64, window_size=4, **SMALL)
    ours = same_logits(theirs, tmp_path / "theirs", 64)
    authors = tmp_path / "authors"
    authors.mkdir()
    weights = in_the_authors_naming(load_file(tmp_path / "theirs" / "model.safetensors"), 4, 64)
    assert "layers.0.blocks.1.attn.q_bias" in weights
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, authors / "model.safetensors")
    again = load_swin_v2(authors)
    assert again.spec == ours.spec
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(images), ours(images))


def damaged(tmp_path, change):
    peer(image_size=32, window_size=4, **SMALL).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
    with pytest.raises(TensorError) as caught:
        load_swin_v2(tmp_path)
    return str(caught.value)


KEY = "swinv2.encoder.layers.1.blocks.0.attention.self.key.weight"


def test_a_tensor_of_another_shape_is_refused_by_name(tmp_path):
    said = damaged(tmp_path, lambda weights: weights.update({KEY: torch.zeros(64, 63)}))
    assert said == "encoder.blocks.3.attention.key.weight: shape (64, 63); expected (64, 64)"


def test_a_missing_tensor_is_refused_by_name(tmp_path):
    said = damaged(tmp_path, lambda weights: weights.pop(KEY))
    assert said == "encoder.blocks.3.attention.key.weight: missing; expected (64, 64)"


def test_a_tensor_with_nan_is_refused_by_name(tmp_path):
    said = damaged(tmp_path, lambda weights: weights[KEY].fill_(float("nan")))
    assert said.startswith("encoder.blocks.3.attention.key.weight: shape (64, 64) with NaN")


def test_other_weights_are_refused(tmp_path):
    save_file({"layer.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(TensorError, match=r"layer.weight.*no Swin Transformer V2"):
        load_swin_v2(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(TensorError, match=r"model.safetensors: not readable"):
        load_swin_v2(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no \*\.safetensors"):
        load_swin_v2(tmp_path / "nowhere")


def test_without_a_classifier_the_pooled_state_is_given(tmp_path):
    theirs = peer(image_size=32, window_size=4, **SMALL)
    theirs.swinv2.save_pretrained(tmp_path)
    ours = load_swin_v2(tmp_path)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs.swinv2(images).pooler_output, atol=1e-5, rtol=0)


def test_the_published_variants_have_their_published_sizes():
    # millions of parameters with 1,000 classes, table 2 of the paper and the authors' model hub
    published = {
        "swinv2-tiny": 28,
        "swinv2-small": 50,
        "swinv2-base": 88,
        "swinv2-large": 197,
        "swinv2-huge": 658,
    }
    for variant, millions in published.items():
        with torch.device("meta"):
            module = SwinV2(VisionSpec(variant=variant), 1000)
        assert round(sum(p.numel() for p in module.parameters()) / 1e6) == pytest.approx(millions, abs=1), (
            variant
        )
    assert VisionSpec(variant="swinv2-tiny", depths=(1, 1, 1, 1)).depths == (1, 1, 1, 1)
    assert json.loads(VisionSpec(variant="swinv2-base").model_dump_json())["embed_dim"] == 128
