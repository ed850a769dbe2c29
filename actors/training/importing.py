"""Published weights as a `Checkpoint` artifact's content."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp

from ...models.multimodal import MultimodalModel
from ...models.spec import ModelSpec, Task
from ...models.weights import fold_normalisation, load_swin_v2
from ...pipelines.spec import Preparation
from .checkpoint import CheckpointInfo

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def write_checkpoint(
    folder: Path, output: Path, *, image_size: int | None = None, window_size: int | None = None
) -> CheckpointInfo:
    """Write a published Swin V2 as a checkpoint of a model of pictures alone.

    Our pictures are in [-1, 1], whatever the mean and deviation that the weights were trained with: those are
    folded into the first projection, so that a picture gets the logits that it gets there.

    Args:
        folder: of the weights; mean and deviation are in its `preprocessor_config.json`, else ImageNet's.
        output: empty folder.
        image_size: see `load_swin_v2`.
        window_size: see `load_swin_v2`.

    Raises:
        FileNotFoundError: when there are no weights in the folder.
        TensorError: when they are no Swin Transformer V2.
    """
    published = load_swin_v2(folder, image_size=image_size, window_size=window_size)
    mean, std = _normalisation(folder)
    fold_normalisation(published.encoder.embed, mean, std)
    spec = ModelSpec(vision=published.spec, text=None, audio=None, decoder=None)
    head = published.classifier
    tasks: tuple[Task, ...] = () if head is None else ("classification",)
    classes = () if head is None else _classes(folder, head.linear.out_features)
    model = MultimodalModel(spec, 0, len(classes), tasks)
    assert model.vision is not None
    model.vision.load_state_dict(published.encoder.state_dict())
    if head is not None and model.heads.classifier is not None:
        model.heads.classifier.load_state_dict(head.state_dict())
    dcp.save(model.state_dict(), checkpoint_id=output / "weights", no_dist=True)
    size = published.spec.image_size
    info = CheckpointInfo(
        model=spec,
        tasks=tasks,
        vocab_size=0,
        classes=classes,
        preparation=Preparation(image_size=size, stored_image_size=size),
        step=0,
    )
    (output / "checkpoint.json").write_text(info.model_dump_json(indent=2))
    return info


def _classes(folder: Path, count: int) -> tuple[str, ...]:
    """Names of the categories, by the config's `id2label`; their numbers where it has none."""
    path = folder / "config.json"
    names: dict[str, str] = json.loads(path.read_text()).get("id2label", {}) if path.is_file() else {}
    return tuple(names.get(str(number), str(number)) for number in range(count))


def _normalisation(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    path = folder / "preprocessor_config.json"
    config = json.loads(path.read_text()) if path.is_file() else {}
    mean, std = config.get("image_mean", IMAGENET_MEAN), config.get("image_std", IMAGENET_STD)
    return torch.tensor(mean), torch.tensor(std)
