"""What a plan foretells for one GPU beside what is measured there: memory of tensors, and time of a step.

train_plan.py text|multimodal PRECISION
"""

import statistics
import sys
import time

import torch
from training import CLASSES, VOCABULARY, join_alone, random_rows, tell

from eagleray.actors.training.certificate import Training
from eagleray.actors.training.devices import GPUS
from eagleray.actors.training.estimate import estimate
from eagleray.actors.training.learner import Learner
from eagleray.actors.training.spec import ObjectiveSpec, TrainingSpec
from eagleray.models.spec import AudioSpec, DecoderSpec, ModelSpec, TextSpec, VisionSpec

STEPS = 8
CASES = {
    "text": (
        ModelSpec(
            vision=None,
            audio=None,
            decoder=None,
            text=TextSpec(d_model=1024, num_layers=12, num_heads=16, max_tokens=512, memory_length=0),
        ),
        ObjectiveSpec(contrastive=0, language=1.0),
        32,
        512,
    ),
    "multimodal": (
        ModelSpec(
            vision=VisionSpec(
                image_size=128, window_size=8, embed_dim=128, depths=(2, 2, 6), num_heads=(2, 4, 8)
            ),
            audio=AudioSpec(d_model=512, num_layers=4, num_heads=8, max_frames=128),
            text=TextSpec(d_model=512, num_layers=6, num_heads=8, max_tokens=64),
            decoder=DecoderSpec(d_model=512, num_layers=4, num_heads=8),
        ),
        ObjectiveSpec(contrastive=1.0, negatives=0, caption=0.25, classification=0.5),
        64,
        64,
    ),
}
"""Name → model, objective, rows of a step, and tokens of a row."""

model, objective, rows, length = CASES[sys.argv[1]]
spec = TrainingSpec(kind="pretrain", batch_size=rows, objective=objective, precision=sys.argv[2])
foretold = estimate(Training(spec, model), length, VOCABULARY, CLASSES)
join_alone()
learner = Learner(spec, model, VOCABULARY, CLASSES)
waiting, batch = (random_rows(model, rows, length) for _ in range(2))  # the next step's rows are there, too
took = []
for number in range(STEPS):
    if number == 2:
        torch.cuda.reset_peak_memory_stats()
    torch.cuda.synchronize()
    started = time.perf_counter()
    learner.backward([[batch]])
    learner.update()
    torch.cuda.synchronize()
    took.append(time.perf_counter() - started)
device = next(device for key, device in GPUS.items() if key.upper() in torch.cuda.get_device_name())
tell(
    {
        "foretold_mb": foretold.workers[0].total / 2**20,
        "measured_mb": torch.cuda.max_memory_allocated() / 2**20,
        "foretold_s": device.step_s(foretold),
        "measured_s": statistics.median(took[3:]),
        "steps_s": took,
        "tflops": foretold.workers[0].flops / 1e12,
    }
)
