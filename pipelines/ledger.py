"""Proof of what was read: a chain of hashes over the ids of all records, in the order they were trained on.

Each worker adds a hash of position and id for every record it has used; sums of such hashes are equal
however the records were divided among workers. With each checkpoint the workers' sums become one entry,
chained to the one before. Recomputed from the corpus, a ledger shows that every position was used once, by
whom- and however many workers, through all resizes and crashes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..workflows.errors import EaglerayError
from ..workflows.spec import Spec
from .order import Rows, rows_at

LEDGER = "ledger.json"
"""Its file in a checkpoint's folder."""
MODULUS = 1 << 128
BEGINNING = "0" * 64
AT_ONCE = 4096


class Entry(Spec):
    """What was used between two checkpoints.

    Attributes:
        start: first position.
        stop: one more than the last.
        step: steps of the training up to there.
        total: sum of the hashes of all positions and ids, hex.
        chain: hash of this entry and of the chain before it, hex.
    """

    start: int
    stop: int
    step: int
    total: str
    chain: str


class Ledger(Spec):
    """What a training used, from its first record on.

    Attributes:
        corpus: digest of the corpus's content: its `corpus.json`.
        split: whose records.
        num_records: of the split: records, or sequences that they are cut into.
        seed: of the order.
        max_tokens: that documents are cut into sequences of, if they are; see `Sequences`.
        entries: one for each checkpoint.
    """

    corpus: str
    split: str
    num_records: int
    seed: int
    max_tokens: int | None = None
    entries: tuple[Entry, ...] = ()

    @property
    def stop(self) -> int:
        """Positions used."""
        return self.entries[-1].stop if self.entries else 0

    @property
    def step(self) -> int:
        """Steps taken."""
        return self.entries[-1].step if self.entries else 0

    def extended(self, stop: int, step: int, totals: Iterable[int]) -> Ledger:
        """The ledger with one more entry, up to position `stop` and `step`, of all workers' sums."""
        total = f"{sum(totals) % MODULUS:032x}"
        before = self.entries[-1].chain if self.entries else BEGINNING
        chain = _chain(before, self.stop, stop, step, total)
        entry = Entry(start=self.stop, stop=stop, step=step, total=total, chain=chain)
        return self.model_copy(update={"entries": (*self.entries, entry)})


class Tally:
    """A worker's sum since the last checkpoint."""

    def __init__(self) -> None:
        self.total = 0

    def add(self, positions: Iterable[int], ids: Sequence[str]) -> None:
        """Count the records at some positions (N,) as used."""
        self.total = (self.total + _sum(positions, ids)) % MODULUS


def read_ledger(path: Path) -> Ledger:
    """Read a ledger's file.

    Raises:
        EaglerayError: when it isn't there, or is none.
    """
    try:
        return Ledger.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise EaglerayError(
            "there is no ledger that can be read", "name a training's checkpoint", str(path)
        ) from error


def verify(ledger: Ledger, ids: Callable[[Rows], Sequence[str]]) -> None:
    """Recompute a ledger from its corpus.

    Args:
        ledger: to be checked.
        ids: rows (B,) of the split → their ids.

    Raises:
        EaglerayError: at the first entry that isn't what the corpus and the order give.
    """
    before, position = BEGINNING, 0
    for number, entry in enumerate(ledger.entries):
        where = f"entry {number}, positions {entry.start} to {entry.stop}"
        if entry.start != position or entry.stop <= entry.start:
            raise EaglerayError(
                f"the ledger has a gap or an overlap: it stood at {position}", "don't trust it", where
            )
        if entry.chain != _chain(before, entry.start, entry.stop, entry.step, entry.total):
            raise EaglerayError("the ledger's chain is broken: it was changed", "don't trust it", where)
        total = 0
        for start in range(entry.start, entry.stop, AT_ONCE):
            stop = min(start + AT_ONCE, entry.stop)
            rows, _ = rows_at(ledger.seed, ledger.num_records, start, stop)
            total += _sum(range(start, stop), ids(rows))
        if f"{total % MODULUS:032x}" != entry.total:
            raise EaglerayError(
                "other records were used there than the order says, or some twice, or some not",
                "don't trust what was trained; report it with the ledger",
                where,
            )
        before, position = entry.chain, entry.stop


def verify_checkpoint(checkpoint: Path, corpus: Path) -> dict[str, Any]:
    """Recompute the ledger in a checkpoint's folder from the corpus's.

    Returns:
        What was used: records of the split, positions, how often each record at least and at most, the last
        hash of the chain.

    Raises:
        EaglerayError: when they don't belong together, or the ledger isn't what corpus and order give.
    """
    from .reading import CorpusReader
    from .sequences import Sequences

    ledger = read_ledger(checkpoint / LEDGER)
    if ledger.corpus != corpus_digest(corpus):
        raise EaglerayError("the ledger is of another corpus", "name the one it was trained on", str(corpus))
    verify(ledger, Sequences(CorpusReader(corpus, ledger.split), ledger.max_tokens).ids_of)
    least, most = usage(ledger)
    return {
        "records": ledger.num_records,
        "used": ledger.stop,
        "each_at_least": least,
        "each_at_most": most,
        "entries": len(ledger.entries),
        "chain": ledger.entries[-1].chain if ledger.entries else BEGINNING,
    }


def usage(ledger: Ledger) -> tuple[int, int]:
    """How often each record was used: at least, and at most."""
    whole, rest = divmod(ledger.stop, ledger.num_records)
    return whole, whole + (rest > 0)


def corpus_digest(folder: Path) -> str:
    """What a ledger calls a corpus by: the sha256 of its `corpus.json`, hex."""
    return hashlib.sha256((folder / "corpus.json").read_bytes()).hexdigest()


def _sum(positions: Iterable[int], ids: Sequence[str]) -> int:
    total = 0
    for position, record in zip(positions, ids, strict=True):
        digest = hashlib.sha256(f"{position} {record}".encode("utf-8", "surrogatepass")).digest()
        total += int.from_bytes(digest[:16], "big")
    return total


def _chain(before: str, start: int, stop: int, step: int, total: str) -> str:
    return hashlib.sha256(f"{before} {start} {stop} {step} {total}".encode()).hexdigest()
