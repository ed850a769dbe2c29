"""How much of a corpus's steps is no padding, by tokens and by rows, and tokens a second of training.

train_batching.py captions|speeches|clips tokens|rows FOLDER
"""

import statistics
import sys
import time
from itertools import islice

import torch
from training import folder_of, join_alone, tell

from eagleray.actors.training.data import StepReader
from eagleray.actors.training.learner import Learner
from eagleray.actors.training.spec import BatchingSpec, ObjectiveSpec, ParallelSpec, TrainingSpec
from eagleray.models.spec import AudioSpec, ModelSpec, TextSpec, VisionSpec
from eagleray.pipelines.reading import CorpusReader
from eagleray.pipelines.sequences import Sequences

MESHES = {"alone": (ParallelSpec(), 1), "two": (ParallelSpec(data=2), 1), "eight": (ParallelSpec(data=8), 8)}
"""Name → the mesh, and how many times the usual tokens a step has there."""
WARM_UP, STEPS, SAMPLE = 3, 12, 30
CASES = {
    # objective, model, and rows that have about as many tokens as a step of tokens
    "captions": (
        {"contrastive": 1.0, "negatives": 0},
        {"vision": VisionSpec(), "text": TextSpec(), "audio": None, "decoder": None},
        400,
    ),
    "speeches": (
        {"language": 1.0},
        {"vision": None, "text": TextSpec(max_tokens=512, memory_length=512), "audio": None, "decoder": None},
        2,
    ),
    "clips": (
        {"transcription": 1.0},
        {
            "vision": None,
            "text": None,
            "audio": AudioSpec(max_frames=800, num_convs=2),
            "decoder": None,
        },
        32,
    ),
}
"""What each corpus is trained for here."""


def spec_of(how, parallel, times=1):
    objective, model, rows = CASES[sys.argv[1]]
    size = (
        {"batching": BatchingSpec(tokens=4096 * times, max_rows=512 * times)}
        if how == "tokens"
        else {"batch_size": rows}
    )
    return TrainingSpec(
        kind="pretrain",
        steps=1000,
        objective=ObjectiveSpec(**{"contrastive": 0, **objective}),
        parallel=parallel,
        uncertified=True,
        **size,
    ), ModelSpec(**model)


def real(step):
    """Tokens of a step: of texts, and of recordings as attention sees them."""
    total = 0
    for batch in (batch for groups in step.passes for batch in groups):
        total += int(batch["token_mask"].sum())
        if "mel_mask" in batch:
            total += int((-(-batch["mel_mask"].sum(dim=1) // 4)).sum())
    return total


def read(reader, how, parallel, times=1):
    """Steps without end."""
    spec, model = spec_of(how, parallel, times)
    sequences = Sequences(reader, None if spec.batching is None else spec.batching.max_tokens)
    steps = StepReader(sequences, model, spec, 0)
    position = 0
    while True:
        step = steps.read(position)
        position = step.stop
        yield step


torch.set_num_threads(2)
how, reader = sys.argv[2], CorpusReader(folder_of(sys.argv[3]), "train")
found = {}
if how == "tokens":
    for name, mesh in MESHES.items():
        found[name] = statistics.mean(step.fill for step in islice(read(reader, how, *mesh), SAMPLE))
join_alone()
spec, model = spec_of(how, ParallelSpec())
learner = Learner(spec, model, reader.info.vocab_size, len(reader.info.classes))
rates = []
for number, step in zip(range(WARM_UP + STEPS), read(reader, how, ParallelSpec()), strict=False):
    started = time.perf_counter()
    learner.backward(step.passes)
    learner.update()
    if number >= WARM_UP:
        rates.append((real(step), time.perf_counter() - started))
tell({**found, "tokens_per_s": sum(tokens for tokens, _ in rates) / sum(took for _, took in rates)})
