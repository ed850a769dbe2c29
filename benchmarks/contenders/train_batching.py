"""How much of a corpus's steps is no padding, and tokens a second of training.

train_batching.py captions|speeches|clips fill|speed FILL FOLDER: steps of 4,096 tokens in groups so full;
with 0, of rows that are filled up to the longest of the corpus.
"""

import statistics
import sys
import time
from itertools import islice

import torch
from training import DEVICE, folder_of, join_alone, tell

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


def spec_of(fill, parallel, times=1):
    objective, model, rows = CASES[sys.argv[1]]
    budget = {"tokens": 4096 * times, "max_rows": 512 * times}
    size = {"batching": BatchingSpec(fill=fill, **budget)} if fill else {"batch_size": rows}
    return TrainingSpec(
        kind="pretrain",
        steps=1000,
        objective=ObjectiveSpec(**{"contrastive": 0, **objective}),
        parallel=parallel,
        uncertified=True,
        **size,
    ), ModelSpec(**model)


def real(step):
    """Tokens of a step: of texts, or of recordings as attention sees them."""
    batches = [batch for groups in step.passes for batch in groups]
    if "mel_mask" in batches[0]:
        return sum(int((-(-batch["mel_mask"].sum(dim=1) // 4)).sum()) for batch in batches)
    return sum(int(batch["token_mask"].sum()) for batch in batches)


def read(reader, fill, parallel, times=1):
    """Steps without end."""
    spec, model = spec_of(fill, parallel, times)
    sequences = Sequences(reader, None if spec.batching is None else spec.batching.max_tokens)
    steps = StepReader(sequences, model, spec, 0, torch.device(DEVICE))
    position = 0
    while True:
        step = steps.read(position)
        position = step.stop
        yield step


torch.set_num_threads(2)
fill, reader = float(sys.argv[3]), CorpusReader(folder_of(sys.argv[4]), "train")
if sys.argv[2] == "fill":
    found = {
        name: statistics.mean(step.fill for step in islice(read(reader, fill, *mesh), SAMPLE))
        for name, mesh in MESHES.items()
    }
    tell(found)
join_alone()
spec, model = spec_of(fill, ParallelSpec())
learner = Learner(spec, model, reader.info.vocab_size, len(reader.info.classes))
done = []
for number, step in zip(range(WARM_UP + STEPS), read(reader, fill, ParallelSpec()), strict=False):
    started = time.perf_counter()
    learner.backward(step.passes)
    learner.update()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    if number >= WARM_UP:
        done.append((real(step), time.perf_counter() - started))
tell({"tokens_per_s": sum(tokens for tokens, _ in done) / sum(took for _, took in done)})
