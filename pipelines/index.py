"""The index of a bundle: the pictures of its corpus and their embeddings, in a Parquet file.

Shape letters: E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

INDEX = "index.parquet"
"""Its file."""
INDEX_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("caption", pa.string()),
        ("category", pa.string()),
        ("path", pa.string()),
        ("embedding", pa.list_(pa.float32())),
    ]
)


@dataclass(frozen=True)
class Hit:
    """A picture found by a search; score is the cosine of its embedding with the query's."""

    id: str
    caption: str
    category: str
    path: str
    score: float


class Index:
    """Indexed pictures; captions and vectors are read when they are first asked for.

    Args:
        folder: of the bundle.
        embed_dim: E.
    """

    def __init__(self, folder: Path, embed_dim: int) -> None:
        self._path, self._embed_dim = folder / INDEX, embed_dim

    @property
    def captions(self) -> list[str]:
        """Of the pictures; empty where one has none."""
        return self._told["caption"].to_pylist()

    def search(self, query: NDArray[np.float32], top_k: int) -> list[Hit]:
        """Rank the pictures by cosine with `query` (E,); the best `top_k`, equal ones by id."""
        scores = self._vectors @ query
        order = np.argsort(-scores, kind="stable")[:top_k]
        rows = self._told.take(pa.array(order)).to_pylist()
        return [Hit(**row, score=float(scores[i])) for row, i in zip(rows, order, strict=True)]

    @cached_property
    def _told(self) -> pa.Table:
        names = [name for name in INDEX_SCHEMA.names if name != "embedding"]
        return pq.read_table(self._path, columns=names)

    @cached_property
    def _vectors(self) -> NDArray[np.float32]:
        table = pq.read_table(self._path, columns=["embedding"])
        vectors = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return vectors.reshape(-1, self._embed_dim).astype(np.float32, copy=False)
