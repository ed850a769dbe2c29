"""Forward and backward time a token of Transformer-XL after so many tokens: CONTEXT MEMORY WINDOW."""

import json
import resource
import statistics
import sys
import time

import torch
from stepping import DEVICE, wait

from eagleray.models.spec import TextSpec
from eagleray.models.text import TextEncoder

SEGMENT, VOCABULARY, SEGMENTS = 512, 2_000, 5
context, memory, window = (int(word) for word in sys.argv[1:])
torch.set_num_threads(2)
torch.manual_seed(0)
spec = TextSpec(
    d_model=256, num_layers=8, num_heads=4, max_tokens=SEGMENT, memory_length=memory, window=window
)
model = TextEncoder(spec, VOCABULARY).to(DEVICE)


def segment() -> torch.Tensor:
    """Tokens (1, S)."""
    return torch.randint(0, VOCABULARY, (1, SEGMENT), device=DEVICE)


remembered = None
with torch.no_grad():
    for _ in range(context // SEGMENT):
        _, remembered = model(segment(), remembered)
took: list[float] = []
for _ in range(SEGMENTS):
    started = time.perf_counter()
    model.zero_grad()
    hidden, _ = model(segment(), remembered)
    hidden.square().mean().backward()
    wait()
    took.append((time.perf_counter() - started) / SEGMENT)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
if DEVICE == "cuda":
    peak = torch.cuda.max_memory_allocated() / 2**20
print(json.dumps({"us_per_token": statistics.median(took[1:]) * 1e6, "peak_mb": peak}))
