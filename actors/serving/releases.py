"""What an application serves: a bundle, perhaps one that is tried beside it, and those that were before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from ...workflows.spec import Spec

KEPT = 5
"""Releases that can be gone back to."""


class Release(Spec):
    """A bundle where replicas find it."""

    bundle: str
    """Digest."""
    folder: str


class Trial(Spec):
    """How a candidate is tried on requests."""

    mode: Literal["mirror", "split"]
    """`mirror` asks it the same beside, and nobody sees what it says; `split` lets it answer."""
    share: float = Field(gt=0, le=1)
    """Of the requests."""


class Releases(Spec):
    """What replicas are to serve; they change to it while they run."""

    live: Release
    candidate: Release | None = None
    trial: Trial | None = None
    """Of the candidate; without, it answers those who ask for it by its digest only."""
    previous: tuple[Release, ...] = ()
    """What was live before, the latest first."""
    beside: Mapping[str, Release] = Field(default_factory=dict)
    """Name → what answers at /models/NAME."""

    def followed_by(self, release: Release) -> Releases:
        """These, with another live."""
        earlier = tuple(one for one in (self.live, *self.previous) if one.bundle != release.bundle)
        return Releases(live=release, previous=earlier[:KEPT], beside=self.beside)

    def gone_back(self) -> Releases:
        """These, with what was live before."""
        return Releases(live=self.previous[0], previous=self.previous[1:], beside=self.beside)
