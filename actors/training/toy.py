"""A model of the same structure at the least width, and batches of every shape that it may meet."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import gcd, lcm
from typing import TYPE_CHECKING

from ...models.spec import MODALITIES, AudioSpec, DecoderSpec, ModelSpec, Task, TextSpec, VisionSpec
from ...pipelines.spec import Sizes
from .batching import Group, Ints, positions_of, sizes_for

if TYPE_CHECKING:
    from torch import Tensor

    from .data import Batch

VOCAB_SIZE = 48
NUM_CLASSES = 5
SEGMENT = 8
MAX_FRAMES = 128
HEAD_WIDTH = 4


def toy_model(model: ModelSpec) -> ModelSpec:
    """The same layers, heads and options; widths, segments of text and clips as small as they can be."""
    parts = {
        "vision": None if model.vision is None else _vision(model.vision),
        "text": None if model.text is None else _text(model.text),
        "audio": None if model.audio is None else _audio(model.audio),
        "decoder": None if model.decoder is None else _decoder(model.decoder),
    }
    return model.model_copy(update={**parts, "embed_dim": 6, "alignment_heads": 2})


def toy_batch(model: ModelSpec, tasks: Collection[Task], num_rows: int, seed: int) -> dict[str, Tensor]:
    """Rows of a toy model in double precision: texts, answers and clips of all lengths, modalities missing
    here and there, questions among descriptions where answers are a task, captions that several rows share,
    and rows without a category.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, *shape: int, low: int = 0) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    def lengths(low: int, high: int) -> Tensor:
        """(B, high) bool, its first positions; one row is as long as may be."""
        ends = draw(high + 1, num_rows, low=low)
        ends[-1] = high
        return torch.arange(high) < ends[:, None]

    present = draw(4, num_rows, len(MODALITIES)) > 0
    present[0] = True
    batch: dict[str, Tensor] = {
        "label": draw(NUM_CLASSES + 1, num_rows) - 1,
        "group": draw(max(2, 2 * num_rows // 3), num_rows),
        "position": torch.arange(num_rows),
        "is_transcript": draw(4, num_rows) > 0,
    }
    if model.vision is not None:
        side = model.vision.image_size
        batch["image"] = torch.randn(num_rows, 3, side, side, generator=generator, dtype=torch.float64)
        batch["image"][~present[:, MODALITIES.index("image")]] = 0
    if "segmentation" in tasks and model.vision is not None:
        side, kinds = model.vision.image_size, len(model.vision.findings)
        batch["marks"] = draw(kinds + 1, num_rows, side, side)
        batch["marks"][draw(4, num_rows) == 0] = -1
        if model.compares:
            noise = torch.randn(batch["image"].shape, generator=generator, dtype=torch.float64)
            batch["reference"] = batch["image"] + 0.5 * noise
    most = 3 * SEGMENT + 1
    batch["token_mask"] = lengths(3, most) & present[:, MODALITIES.index("text"), None]
    batch["tokens"] = draw(VOCAB_SIZE, num_rows, most, low=1).masked_fill(~batch["token_mask"], 0)
    batch["seed"] = draw(2**62, num_rows)
    if "answer" in tasks and model.decoder is not None:
        asks = draw(2, num_rows) > 0
        asks[0], asks[-1] = False, True
        batch["answer_mask"] = lengths(2, 6) & asks[:, None]
        batch["answer"] = draw(VOCAB_SIZE, num_rows, 6, low=1).masked_fill(~batch["answer_mask"], 0)
        batch["question_type"] = draw(len(model.decoder.question_types) + 1, num_rows) - 1
    if model.audio is not None:
        frames = model.audio.max_frames
        batch["mel_mask"] = lengths(min(frames, 3), frames) & present[:, MODALITIES.index("speech"), None]
        mel = torch.randn(num_rows, frames, model.audio.n_mels, generator=generator, dtype=torch.float64)
        batch["mel"] = mel * batch["mel_mask"][..., None]
    return {**batch, "present": present}


def toy_lengths(model: ModelSpec, batch: Mapping[str, Tensor]) -> Ints:
    """Lengths of a batch's rows; see `positions_of`."""
    counts = [
        batch[name].sum(dim=1).tolist() if name in batch else [0] * len(batch["label"])
        for name in ("token_mask", "answer_mask", "mel_mask")
    ]
    return positions_of([Sizes(*row) for row in zip(*counts, strict=True)], model)


def toy_rows(model: ModelSpec, batch: Mapping[str, Tensor], group: Group, part: int) -> Batch:
    """The rows of a batch that a part has in a group, as short as they may be there."""
    import torch

    from .data import fill_rows

    rows = torch.from_numpy(group.rows[part])
    found = {name: tensor[rows[rows >= 0]] for name, tensor in batch.items()}
    if group.lengths is not None:
        sizes = sizes_for(group.lengths, model, MAX_FRAMES)
        for name, size in (("tokens", sizes.tokens), ("answer", sizes.answer), ("mel", sizes.frames)):
            for column in (name, f"{name.removesuffix('s')}_mask"):
                if column in found:
                    found[column] = found[column][:, :size]
    return fill_rows(found, len(rows))


def _vision(spec: VisionSpec) -> VisionSpec:
    # the least width that every scale's heads divide
    width = lcm(*(heads // gcd(heads, 2**scale) for scale, heads in enumerate(spec.num_heads)))
    update = {"embed_dim": HEAD_WIDTH * width, "mlp_ratio": 1.0, "pyramid_width": min(spec.pyramid_width, 4)}
    return spec.model_copy(update=update)


def _text(spec: TextSpec) -> TextSpec:
    scale = SEGMENT / spec.max_tokens
    cutoffs = (VOCAB_SIZE // 3, VOCAB_SIZE // 2, 2 * VOCAB_SIZE // 3)[: len(spec.adaptive_cutoffs)]
    return spec.model_copy(
        update={
            "d_model": HEAD_WIDTH * spec.num_heads,
            "mlp_ratio": 1.0,
            "max_tokens": SEGMENT,
            "memory_length": min(2 * SEGMENT, round(spec.memory_length * scale)),
            "overlap": min(SEGMENT - 1, round(spec.overlap * scale)),
            "window": min(2 * SEGMENT, round(spec.window * scale)),
            "adaptive_cutoffs": cutoffs,
        }
    )


def _audio(spec: AudioSpec) -> AudioSpec:
    update = {
        "d_model": HEAD_WIDTH * spec.num_heads,
        "mlp_ratio": 1.0,
        "n_mels": spec.num_bands,
        "max_frames": min(spec.max_frames, MAX_FRAMES),
    }
    return spec.model_copy(update=update)


def _decoder(spec: DecoderSpec) -> DecoderSpec:
    return spec.model_copy(update={"d_model": HEAD_WIDTH * spec.num_heads, "mlp_ratio": 1.0})
