"""Published weights: the same logits for the same picture, and a checkpoint that is trained on from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import Swinv2Config, Swinv2ForImageClassification

from eagleray.actors.stages.evaluate import EvaluateSpec, evaluate
from eagleray.actors.stages.finetune import FinetuneSpec, finetune
from eagleray.actors.stages.import_weights import ImportWeightsSpec, import_weights
from eagleray.actors.training.checkpoint import load_model, read_info
from eagleray.pipelines.media.image import normalise
from eagleray.workflows.artifacts import Checkpoint, Corpus
from eagleray.workflows.errors import EaglerayError

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture
def published(tmp_path):
    torch.manual_seed(0)
    config = Swinv2Config(
        image_size=32, window_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 4], num_labels=3
    )
    config.id2label = {0: "cat", 1: "dog", 2: "cow"}
    model = Swinv2ForImageClassification(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path / "published")
    return model, tmp_path / "published"


def imported(folder, make_context):
    context = make_context("imported")
    facts = import_weights.function(context, ImportWeightsSpec(path=str(folder)))
    return Checkpoint(context.output, "c" * 64, "f", dict(facts or {}))


def test_a_picture_gets_the_logits_that_the_published_model_gives_it(published, make_context):
    theirs, folder = published
    checkpoint = imported(folder, make_context)
    assert read_info(checkpoint.path).classes == ("cat", "dog", "cow")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    prepared = torch.from_numpy(((pixels / 255 - MEAN) / STD).transpose(0, 3, 1, 2)).float()
    with torch.no_grad():
        expected = theirs(prepared).logits
        found = load_model(checkpoint.path).classify(torch.from_numpy(normalise(pixels)))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_finetuning_goes_on_from_published_weights_and_adds_what_they_lack(
    published, make_context, corpus_folder
):
    _, folder = published
    checkpoint, corpus = imported(folder, make_context), Corpus(corpus_folder, "d" * 64, "f", {})
    with pytest.raises(EaglerayError, match="other categories than the checkpoint"):
        evaluate.function(
            make_context("early"), EvaluateSpec(split="train"), corpus=corpus, checkpoint=checkpoint
        )
    vision = read_info(checkpoint.path).model.vision
    text = {"d_model": 32, "num_layers": 1, "num_heads": 4, "max_tokens": 16}
    spec = FinetuneSpec.model_validate(
        {
            "steps": 1,
            "batch_size": 8,
            "objective": {"classification": 1.0, "contrastive": 1.0},
            "freeze": ["vision"],
            "model": {"vision": vision.model_dump(), "text": text, "audio": None, "decoder": None},
        }
    )
    context = make_context("tuned")
    finetune.function(context, spec, corpus=corpus, checkpoint=checkpoint)
    before, after = load_model(checkpoint.path).state_dict(), load_model(context.output).state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("vision."))
    assert after["heads.classifier.linear.weight"].shape[0] == 2  # the corpus's own categories
    assert "text.embed.weight" in after


def test_low_rank_layers_end_up_in_a_plain_checkpoint(published, make_context, corpus_folder):
    _, folder = published
    checkpoint, corpus = imported(folder, make_context), Corpus(corpus_folder, "d" * 64, "f", {})
    spec = FinetuneSpec.model_validate(
        {"steps": 2, "batch_size": 8, "objective": {"classification": 1.0}, "lora": {"rank": 2}}
    )
    context = make_context("tuned")
    finetune.function(context, spec, corpus=corpus, checkpoint=checkpoint)
    before, after = load_model(checkpoint.path).state_dict(), load_model(context.output).state_dict()
    assert set(before) == set(after)
    changed = {n for n in before if n.startswith("vision.") and not torch.equal(before[n], after[n])}
    assert changed
    assert all(name.rpartition(".")[0].endswith(("query", "value")) for name in changed)


def test_a_path_that_does_not_exist_is_refused_before_anything_is_trained(
    published, make_context, corpus_folder
):
    _, folder = published
    checkpoint, corpus = imported(folder, make_context), Corpus(corpus_folder, "d" * 64, "f", {})
    spec = FinetuneSpec.model_validate({"objective": {"classification": 1.0}, "freeze": ["vison"]})
    with pytest.raises(EaglerayError, match="the model has no 'vison'"):
        finetune.function(make_context("tuned"), spec, corpus=corpus, checkpoint=checkpoint)


def test_a_folder_without_weights_is_refused(make_context, tmp_path):
    with pytest.raises(EaglerayError, match=r"no \*\.safetensors"):
        import_weights.function(make_context("imported"), ImportWeightsSpec(path=str(tmp_path)))
