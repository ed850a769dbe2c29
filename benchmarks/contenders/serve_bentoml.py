"""BentoML with two workers and its own batching: serve_bentoml.py BUNDLE."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import bentoml
from serving import Whole, contend


@bentoml.service(workers=2, traffic={"max_concurrency": 1_000})
class Answers:
    """The model as BentoML calls it: what requests hold comes as a list, an entry for each."""

    def __init__(self) -> None:
        self.model = Whole(os.environ["BUNDLE"])

    @bentoml.api(route="/v1/answer", batchable=True, batch_dim=0, max_batch_size=16, max_latency_ms=10_000)
    def answer(self, sent: list[dict[str, Any]]) -> list[str]:
        """Answer what runs together."""
        return self.model.answer([self.model.prepare(one) for one in sent])


if __name__ == "__main__":
    folder = Path(__file__).parent
    contend(
        [
            *(sys.executable, "-m", "bentoml", "serve", "serve_bentoml:Answers", "--port", "PORT"),
            *("--working-dir", str(folder), "--host", "127.0.0.1"),
        ],
        "/readyz",
        {
            "BUNDLE": sys.argv[1],
            "BENTOML_DO_NOT_TRACK": "1",
            "WRAP": "sent",  # what it batches must be a list
            "PYTHONPATH": f"{folder}{os.pathsep}{os.environ['PYTHONPATH']}",
        },
    )
