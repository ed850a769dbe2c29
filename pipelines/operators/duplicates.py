"""Leaving out what stands in a corpus twice, or nearly twice: within splits, and across them.

What is evaluated on must not have been trained on. So of records that are the same, the one is kept that is
in `test`, else in `val`, else in `train`; among equals the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ..operator import Apply, LeftOut, Operator, OperatorSpec
from ..quarantine import Refuse
from ..source import Row
from ..spec import Preparation

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

PRIORITY = ("test", "val", "train")


class DuplicatesSpec(OperatorSpec):
    """What all operators on duplicates have in common."""

    across: Literal["keep-held-out", "within-split"] = "keep-held-out"
    """Compare all records and keep those that are evaluated on, or compare within each split only."""


class ExactDuplicatesSpec(DuplicatesSpec):
    """Leave out records whose files or texts are the same, byte for byte."""

    kind: Literal["exact-duplicates"] = "exact-duplicates"
    of: Literal["picture", "recordings", "captions", "text"] = "picture"
    """What is compared; texts as they are when case and spacing are evened out."""


class NearDuplicateImagesSpec(DuplicatesSpec):
    """Leave out pictures that look the same: resized, recompressed, a little brighter."""

    kind: Literal["near-duplicate-images"] = "near-duplicate-images"
    max_distance: int = Field(default=4, ge=0, le=8)
    """Bits, of 64, in which the perceptual hashes of two such pictures may differ."""


class NearDuplicateTextsSpec(DuplicatesSpec):
    """Leave out texts that have nearly all of their phrases in common."""

    kind: Literal["near-duplicate-texts"] = "near-duplicate-texts"
    of: Literal["captions", "text"] = "text"
    """What is compared."""
    threshold: float = Field(default=0.8, ge=0.5, le=1)
    """Share of common shingles (Jaccard's) from which on two texts are the same."""
    shingle_words: int = Field(default=5, ge=1, le=20)
    """Words that follow each other in a shingle; fewer for short texts."""


def digest(spec: ExactDuplicatesSpec, preparation: Preparation) -> Apply:
    """A digest of what is compared; null where a record has none of it."""
    from ..media.text import normalise

    (column,) = _digest_column(spec)

    def apply(row: Row, refuse: Refuse) -> Row:
        found = row[spec.of]
        if not found:
            return {column: None}
        parts: list[bytes]
        if spec.of == "picture":
            parts = [found["content"]]
        elif spec.of == "recordings":
            parts = [one["content"] for one in found]
        else:
            texts = [one["text"] for one in found] if spec.of == "captions" else [found]
            parts = [normalise(one).encode("utf-8", "surrogatepass") for one in texts]
        if not any(parts):
            return {column: None}
        total = sha256()
        for part in parts:
            total.update(len(part).to_bytes(8, "big") + part)
        return {column: total.digest()[:16]}

    return apply


def hash_image(spec: NearDuplicateImagesSpec, preparation: Preparation) -> Apply:
    """`perceptual_hash` of the stored picture; null where there is none."""
    import numpy as np

    from ..media.similarity import perceptual_hash

    side = preparation.stored_image_size

    def apply(row: Row, refuse: Refuse) -> Row:
        if row["image"] is None:
            return {"perceptual_hash": None}
        pixels = np.frombuffer(row["image"]["pixels"], np.uint8).reshape(side, side, 3)
        return {"perceptual_hash": perceptual_hash(pixels)}

    return apply


def sign_text(spec: NearDuplicateTextsSpec, preparation: Preparation) -> Apply:
    """MinHash of the text; null where there is none."""
    from ..media.similarity import minhash
    from ..media.text import normalise

    def apply(row: Row, refuse: Refuse) -> Row:
        texts = [row["text"] or ""] if spec.of == "text" else [one["text"] for one in row["captions"]]
        words = normalise(" ".join(texts))
        signature = minhash(words, spec.shingle_words).tobytes() if words else None
        return {f"{spec.of}_minhash": signature}

    return apply


def same_digest(spec: ExactDuplicatesSpec, table: pa.Table) -> Iterable[LeftOut]:
    """Records with an equal digest."""
    import numpy as np

    def cluster(digests: pa.Array) -> NDArray[np.int64]:
        return digests.dictionary_encode().indices.to_numpy().astype(np.int64)

    (column,) = _digest_column(spec)
    return _left_out(table, column, spec.across, cluster, "exact-duplicate", "is the same")


def close_hash(spec: NearDuplicateImagesSpec, table: pa.Table) -> Iterable[LeftOut]:
    """Records whose pictures have close hashes, or are joined by others that have."""
    import numpy as np

    from ..media.similarity import hash_clusters

    def cluster(hashes: pa.Array) -> NDArray[np.int64]:
        unique, codes = np.unique(hashes.to_numpy(), return_inverse=True)
        return hash_clusters(unique, spec.max_distance)[codes]

    return _left_out(table, "perceptual_hash", spec.across, cluster, "near-duplicate-image", "looks the same")


def close_signature(spec: NearDuplicateTextsSpec, table: pa.Table) -> Iterable[LeftOut]:
    """Records whose texts have much in common, or are joined by others that have."""
    import numpy as np

    from ..media.similarity import PERMUTATIONS, signature_clusters

    def cluster(signatures: pa.Array) -> NDArray[np.int64]:
        encoded = signatures.dictionary_encode()
        unique = np.frombuffer(b"".join(encoded.dictionary.to_pylist()), np.uint32)
        codes = encoded.indices.to_numpy()
        return signature_clusters(unique.reshape(-1, PERMUTATIONS), spec.threshold)[codes]

    column = f"{spec.of}_minhash"
    return _left_out(table, column, spec.across, cluster, "near-duplicate-text", "says nearly the same")


def _digest_column(spec: ExactDuplicatesSpec) -> dict[str, str]:
    return {f"{spec.of}_digest": "binary"}


def _left_out(
    table: pa.Table,
    column: str,
    across: str,
    cluster: Callable[[pa.Array], NDArray[np.int64]],
    reason: str,
    how: str,
) -> Iterator[LeftOut]:
    """Of each cluster, all records but the one that is kept.

    Args:
        table: of all records.
        column: what is compared; a record where it is null is a duplicate of none.
        across: the spec's.
        cluster: values of the column → which of them belong together, (N,).
        reason: the code it is counted under.
        how: what the one that is kept does.
    """
    import numpy as np

    ids: list[str] = table["id"].to_pylist()
    splits: list[str] = table["split"].to_pylist()
    rank = np.array([PRIORITY.index(split) for split in splits], np.int64)
    values = table[column].combine_chunks()
    there = values.is_valid().to_numpy(zero_copy_only=False)
    parts = [there] if across == "keep-held-out" else [there & (rank == one) for one in range(len(PRIORITY))]
    for part in parts:
        rows = np.flatnonzero(part)
        found = cluster(values.take(rows))
        order = np.lexsort((rows, rank[rows], found))
        kept, before = -1, None
        for place in order.tolist():
            row = int(rows[place])
            if found[place] != before:
                kept, before = row, found[place]
            else:
                yield LeftOut(row, reason, f"{ids[kept]} in {splits[kept]} {how}")


EXACT = Operator(
    spec=ExactDuplicatesSpec,
    summary="leave out records that are the same, byte for byte",
    needs=lambda spec: (spec.of,),
    start=digest,
    own=_digest_column,
    decide=same_digest,
)
NEAR_IMAGES = Operator(
    spec=NearDuplicateImagesSpec,
    summary="leave out pictures that look the same",
    needs=lambda spec: ("image",),
    start=hash_image,
    own=lambda spec: {"perceptual_hash": "uint64"},
    decide=close_hash,
)
NEAR_TEXTS = Operator(
    spec=NearDuplicateTextsSpec,
    summary="leave out texts that say nearly the same",
    needs=lambda spec: (spec.of,),
    start=sign_text,
    own=lambda spec: {f"{spec.of}_minhash": "binary"},
    decide=close_signature,
)
