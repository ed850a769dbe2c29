"""Weights grow with a tokenizer: what was there stays, and what is new begins as its pieces' mean."""

import pytest
import torch

from eagleray.actors.training.checkpoint import CheckpointInfo, load_weights
from eagleray.actors.training.extending import extend_weights, pieces_between
from eagleray.models.multimodal import MultimodalModel
from eagleray.models.spec import ModelSpec
from eagleray.pipelines.media.text import extend_tokenizer, train_tokenizer
from eagleray.pipelines.spec import Preparation
from eagleray.workflows.errors import EaglerayError

TEXT = {"d_model": 8, "num_layers": 1, "num_heads": 2, "max_tokens": 8, "overlap": 2}
BASE = train_tokenizer(["net profit rose", "the ship fell"] * 4, 300)


def checkpoint(folder, **text):
    import torch.distributed.checkpoint as dcp

    spec = ModelSpec.model_validate(
        {"vision": None, "audio": None, "decoder": None, "text": {**TEXT, **text}}
    )
    size = BASE.get_vocab_size()
    torch.manual_seed(0)
    model = MultimodalModel(spec, size, 0, ["language"])
    dcp.save(model.state_dict(), checkpoint_id=folder / "weights", no_dist=True)
    BASE.save(str(folder / "tokenizer.json"))
    info = CheckpointInfo(
        model=spec, tasks=("language",), vocab_size=size, classes=(), preparation=Preparation(), step=1
    )
    return model, info


@pytest.mark.parametrize("tied", [True, False])
def test_a_new_token_is_the_mean_of_its_pieces(tmp_path, tied):
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
    model, info = checkpoint(old, tied=tied)
    extended = extend_tokenizer(BASE, ["profitship"])
    extended.save(str(new / "tokenizer.json"))
    pieces = pieces_between(old, new)
    extend_weights(old, new / "weights", info, pieces)
    larger = MultimodalModel(info.model, extended.get_vocab_size(), 0, ["language"])
    assert load_weights(new / "weights", larger) == []
    before, after = model.state_dict(), larger.state_dict()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name][: len(tensor)], tensor)
    weights = before["text.embed.weight"]
    (token,) = extended.encode("profitship").ids
    expected = weights[pieces[token - BASE.get_vocab_size()]].mean(dim=0)
    torch.testing.assert_close(after["text.embed.weight"][token], expected)
    assert len(pieces[token - BASE.get_vocab_size()]) > 1


def test_another_tokenizer_has_no_pieces_and_an_adaptive_softmax_no_place(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
    _, info = checkpoint(old, adaptive_cutoffs=(100,))
    BASE.save(str(new / "tokenizer.json"))
    assert pieces_between(old, new) == []
    train_tokenizer(["other words"] * 4, 300).save(str(new / "tokenizer.json"))
    assert pieces_between(old, new) == []
    with pytest.raises(EaglerayError, match="adaptive softmax"):
        extend_weights(old, new / "weights", info, [[1, 2]])
