"""The types of artifact: what a stage gives and the next one takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Artifact:
    """An artifact opened on a local folder.

    Attributes:
        path: local folder with the content; read-only by convention.
        digest: sha256 of the content, hex.
        fingerprint: identity of what made it, hex.
        facts: what the stage reported about it (JSON values).
    """

    path: Path
    digest: str
    fingerprint: str
    facts: dict[str, Any]


class Corpus(Artifact):
    """Prepared records in Parquet shards, with tokenizer and quarantine."""


class Checkpoint(Artifact):
    """A trained model: sharded weights, its spec, and how its inputs are prepared."""


class AnomalyModel(Artifact):
    """A density of normal patches' features, and the threshold beyond which one is an anomaly."""


class Report(Artifact):
    """Metrics of an evaluation, as `report.json`."""


class Bundle(Artifact):
    """What serving loads: ONNX graphs, preparation, tokenizer, signature."""


class Deployment(Artifact):
    """Where a bundle is served: address, application, bundle digest."""


class Certificate(Artifact):
    """Proof that a topology computes what one process computes."""
