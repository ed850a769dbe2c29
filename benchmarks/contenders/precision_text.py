"""Train a text model: PRECISION STEPS TOKENS [compiled] [wide] [DENSITY]. TOKENS has train.npy and val.npy.

With a density, by Adagrad from gradients of four sources, of which that share is sent; 1 is all.

Prints steps a second, peak memory, what autograd keeps, the validation loss after training, and the share of
the device's best speed that was used (MFU).
"""

import statistics
import sys
import time

import numpy as np
import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.utils.flop_counter import FlopCounterMode
from training import DEVICE, IS_LARGE, folder_of, join_alone, tell

from eagleray.actors.training.learner import Learner
from eagleray.actors.training.spec import (
    CompressionSpec,
    ObjectiveSpec,
    OptimizerSpec,
    ParallelSpec,
    PrecisionControlSpec,
    TrainingSpec,
)
from eagleray.models.multimodal import MultimodalModel
from eagleray.models.spec import ModelSpec, TextSpec

VOCABULARY, LENGTH = 2_000, 512 if IS_LARGE else 64
WIDTH, LAYERS, ROWS, RATE = (512, 8, 32, 1e-3) if IS_LARGE else (64, 2, 8, 1e-3)
if "wide" in sys.argv:
    WIDTH, LAYERS, ROWS, RATE = 2048, 8, 32, 2e-4
HOPPER = {"half": 989e12, "fp8": 1979e12, "fp32": 67e12}
PEAK_FLOPS = {"H100": HOPPER, "H200": HOPPER, "A100": {"half": 312e12, "fp32": 19.5e12}}
"""Dense, by number format, as the vendor gives them."""

precision, steps, folder = sys.argv[1], int(sys.argv[2]), folder_of(sys.argv[3])
density = next((float(word) for word in sys.argv[4:] if word not in ("compiled", "wide")), None)
join_alone()
optimizer = OptimizerSpec(learning_rate=RATE, warmup_steps=steps // 10)
if density is not None:
    compression = None if density == 1 else CompressionSpec(density=density, sources=4)
    optimizer = OptimizerSpec(
        algorithm="adagrad", learning_rate=0.01, warmup_steps=steps // 10, compression=compression
    )
spec = TrainingSpec(
    kind="pretrain",
    steps=steps,
    batch_size=ROWS,
    precision=precision,
    precision_control=PrecisionControlSpec(every=25),
    objective=ObjectiveSpec(contrastive=0, language=1.0),
    optimizer=optimizer,
    parallel=ParallelSpec(sharding="full" if density is None else "optimizer"),
    compile_layers="compiled" in sys.argv,
)
text = TextSpec(d_model=WIDTH, num_layers=LAYERS, num_heads=8, max_tokens=LENGTH, memory_length=0)
model = ModelSpec(vision=None, audio=None, decoder=None, text=text)
learner = Learner(spec, model, VOCABULARY, 1)
tokens = {
    split: torch.from_numpy(np.load(folder / f"{split}.npy").astype(np.int64)) for split in ("train", "val")
}


def batch_at(split, starts):
    rows = torch.stack([tokens[split][start : start + LENGTH] for start in starts]).to(DEVICE)
    count = len(rows)
    return {
        "tokens": rows,
        "token_mask": torch.ones_like(rows, dtype=torch.bool),
        "present": torch.ones(count, 3, dtype=torch.bool, device=DEVICE),
        "label": torch.zeros(count, dtype=torch.long, device=DEVICE),
        "group": torch.arange(count, device=DEVICE),
    }


def wait():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


generator = torch.Generator().manual_seed(0)
took, flops, peak = [], 0, 0
for step in range(steps):
    starts = torch.randint(0, len(tokens["train"]) - LENGTH, (ROWS,), generator=generator).tolist()
    batch = batch_at("train", starts)
    wait()
    started = time.perf_counter()
    if step == 1 and "compiled" not in sys.argv:
        with FlopCounterMode(display=False) as counter:
            terms = learner.backward([[batch]])
        flops = counter.get_total_flops()
    else:
        terms = learner.backward([[batch]])
    update = learner.update()
    wait()
    took.append(time.perf_counter() - started)
    if step == 2 and DEVICE == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
for change in learner.precision.changes:
    print(change.step, change.layer, change.before, change.after, change.why, file=sys.stderr)

whole = MultimodalModel(model, VOCABULARY, 1, ["language"]).to(DEVICE)
weights = get_model_state_dict(learner.model, options=StateDictOptions(full_state_dict=True))
whole.load_state_dict(weights)
total = count = 0
with torch.no_grad():
    for first in range(0, len(tokens["val"]) - LENGTH, LENGTH * 16):
        starts = range(first, min(first + LENGTH * 16, len(tokens["val"]) - LENGTH), LENGTH)
        found = whole(batch_at("val", starts))["language"]
        total, count = total + float(found.double().sum()), count + len(found) * (LENGTH - 1)
result = {
    "steps_per_s": 1 / statistics.median(took[5:]),
    "train_loss": terms["loss"],
    "val_loss": total / count,
    "first_steps_peak_mb": peak,
    "changes": len(learner.precision.changes),
}
if DEVICE == "cuda" and flops:
    name = torch.cuda.get_device_name()
    peaks = next(peaks for known, peaks in PEAK_FLOPS.items() if known in name)
    result["mfu"] = flops * result["steps_per_s"] / peaks.get(precision, peaks["half"])
tell(result)
