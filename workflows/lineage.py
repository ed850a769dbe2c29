"""From an artifact back to all that it was made of, by what the store's records say."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .errors import EaglerayError
from .store import Record

SEALED = "bundle.json"
"""File of a bundle whose own digest stands for the bundle where it is served from a folder."""
SHORTEST = 6
_DIGEST = re.compile(rf"[0-9a-f]{{{SHORTEST},64}}")


@dataclass(frozen=True)
class Origin:
    """An artifact, and what it was made of.

    Attributes:
        digest: of its content.
        record: what the store knows of it; None if that has it no longer.
        made_of: input name → its origin.
    """

    digest: str
    record: Record | None
    made_of: Mapping[str, Origin]

    @property
    def runs(self) -> list[str]:
        """Ids of all runs that made any of it, its own first."""
        found = [self.record.run_id] if self.record else []
        for one in self.made_of.values():
            found += one.runs
        return [one for one in dict.fromkeys(found) if one]


def find(records: Sequence[Record], digest: str) -> Record:
    """The artifact with a digest, or that alone begins so; of a bundle also by the digest of `bundle.json`.

    Args:
        records: of the store, newest first.
        digest: some of its hexadecimal digits, from the first on.

    Raises:
        EaglerayError: when there is none, or more than one.
    """
    wanted = digest.lower()
    if not _DIGEST.fullmatch(wanted):
        raise EaglerayError(
            f"{digest!r} is no digest",
            f"give {SHORTEST} to 64 hexadecimal digits, such as those of a response's header "
            "x-eagleray-bundle, a service's URL, or a bundle's folder",
        )
    matching = {
        record.digest: record
        for record in reversed(records)
        if any(d.startswith(wanted) for d in _names(record))
    }
    if not matching:
        raise EaglerayError(
            f"no artifact here has a digest that begins with {wanted}",
            "name the home or the store of the run that made it: --home FOLDER, --store URI",
        )
    if len(matching) > 1:
        known = ", ".join(f"{one.type} {one.digest[:12]}" for one in matching.values())
        raise EaglerayError(f"several digests begin with {wanted}: {known}", "give more of its digits")
    return next(iter(matching.values()))


def trace(records: Sequence[Record], record: Record) -> Origin:
    """Follow an artifact's inputs back to the first."""
    by_fingerprint = {one.fingerprint: one for one in records}

    def follow(record: Record) -> Origin:
        made_of: dict[str, Origin] = {}
        for name, digest in record.parents.items():
            parent = by_fingerprint.get(record.inputs[name])
            made_of[name] = follow(parent) if parent else Origin(digest, None, {})
        return Origin(record.digest, record, made_of)

    return follow(record)


def trace_digests(records: Sequence[Record], digest: str, parents: Mapping[str, str]) -> Origin:
    """Follow what was made of artifacts with known digests, and isn't in the store itself."""
    by_digest = {one.digest: one for one in records}
    made_of = {
        name: trace(records, by_digest[parent]) if parent in by_digest else Origin(parent, None, {})
        for name, parent in parents.items()
    }
    return Origin(digest, None, made_of)


def _names(record: Record) -> list[str]:
    return [record.digest, *(entry.sha256 for entry in record.files if entry.path == SEALED)]
