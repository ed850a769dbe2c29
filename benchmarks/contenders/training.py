"""One training task for all contenders: the multimodal model, random batches, the same loss and optimizer."""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch import distributed as dist
from torch.optim import AdamW, Optimizer

from eagleray.actors.training.objective import Objective
from eagleray.actors.training.spec import ObjectiveSpec, TrainingSpec
from eagleray.models.multimodal import MultimodalModel
from eagleray.models.spec import AudioSpec, DecoderSpec, ModelSpec, TextSpec, VisionSpec

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IS_LARGE = DEVICE == "cuda"
VOCABULARY, CLASSES, TOKENS = 2_000, 10, 64
WARM_UP, STEPS = (5, 30) if IS_LARGE else (2, 8)
ROWS = 64 if IS_LARGE else 8
THREADS = 2

WIDTH = 512 if IS_LARGE else 96
MODEL = ModelSpec(
    vision=VisionSpec(
        image_size=128 if IS_LARGE else 64,
        window_size=8,
        embed_dim=WIDTH // 4,
        depths=(2, 2, 6),
        num_heads=(2, 4, 8),
    ),
    audio=AudioSpec(d_model=WIDTH, num_layers=4, num_heads=8, max_frames=128),
    text=TextSpec(d_model=WIDTH, num_layers=6, num_heads=8, max_tokens=TOKENS),
    decoder=DecoderSpec(d_model=WIDTH, num_layers=4, num_heads=8),
)
SPEC = TrainingSpec(
    kind="pretrain",
    steps=1_000,
    batch_size=ROWS,
    objective=ObjectiveSpec(contrastive=1.0, negatives=0, caption=0.25, classification=0.5),
)


def batches() -> Iterator[dict[str, Tensor]]:
    """The same rows, over and over, on the device."""
    batch = random_rows(MODEL, ROWS, TOKENS)
    while True:
        yield batch


def random_rows(model: ModelSpec, count: int, length: int) -> dict[str, Tensor]:
    """Rows in which everything is there, on the device, the same at each call."""
    generator = torch.Generator().manual_seed(0)
    batch = {
        "tokens": torch.randint(1, VOCABULARY, (count, length), generator=generator),
        "token_mask": torch.ones(count, length, dtype=torch.bool),
        "present": torch.ones(count, 3, dtype=torch.bool),
        "label": torch.randint(0, CLASSES, (count,), generator=generator),
        "group": torch.arange(count),
        "position": torch.arange(count),
    }
    if model.vision is not None:
        side = model.vision.image_size
        batch["image"] = torch.randn(count, 3, side, side, generator=generator)
    if model.audio is not None:
        frames = model.audio.max_frames
        batch["mel"] = torch.randn(count, frames, model.audio.n_mels, generator=generator)
        batch["mel_mask"] = torch.ones(count, frames, dtype=torch.bool)
    return {name: tensor.to(DEVICE) for name, tensor in batch.items()}


def join_alone() -> None:
    """A process group of this process only."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    folder = tempfile.mkdtemp()
    backend = "cpu:gloo,cuda:nccl" if DEVICE == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/meeting", rank=0, world_size=1)


def build() -> tuple[MultimodalModel, Optimizer, Callable[[MultimodalModel, dict[str, Tensor]], Tensor]]:
    """The model, its optimizer, and the loss of a batch, for a loop of one's own."""
    model = MultimodalModel(MODEL, VOCABULARY, CLASSES, SPEC.objective.tasks).to(DEVICE)
    assert dist.group.WORLD is not None
    objective = Objective(SPEC.objective, model, dist.group.WORLD, 1, torch.device(DEVICE))

    def loss_of(wrapped: MultimodalModel, batch: dict[str, Tensor]) -> Tensor:
        objective.start_step([batch])
        outputs = tuple(wrapped(batch).values())
        return objective(outputs, torch.arange(ROWS, device=DEVICE))

    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    options = SPEC.optimizer
    optimizer = AdamW(
        groups, options.learning_rate, options.betas, weight_decay=options.weight_decay, fused=True
    )
    return model, optimizer, loss_of


def measure(step: Callable[[dict[str, Tensor]], object], warm_up: int = WARM_UP, steps: int = STEPS) -> None:
    """Time steps, and print what they come to."""
    took: list[float] = []
    for number, batch in zip(range(warm_up + steps), batches(), strict=False):
        started = time.perf_counter()
        step(batch)
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        if number >= warm_up:
            took.append(time.perf_counter() - started)
    tell({"steps_per_s": 1 / statistics.median(took)})


def tell(found: dict[str, float]) -> None:
    """Print the result, and leave without waiting for anyone's threads."""
    if DEVICE == "cuda":
        found["peak_mb"] = torch.cuda.max_memory_allocated() / 2**20
    print(json.dumps(found), flush=True)
    sys.stdout.flush()
    os._exit(0)


def folder_of(argument: str) -> Path:
    """A folder that an argument names."""
    return Path(argument).resolve()
