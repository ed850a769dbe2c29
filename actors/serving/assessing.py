"""The part of a replica that assesses whole documents, pictures and volumes, one after the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http import HTTPStatus

import numpy as np

from ...pipelines.assessing.documents import DocumentAssessor
from ...pipelines.assessing.pictures import PictureAssessor
from ...pipelines.assessing.spec import Assessment, NotAssessable
from ...pipelines.assessing.volumes import VolumeAssessor
from ...pipelines.bundle import ANOMALY, BESIDE, DOCUMENT, MARKS, LoadedBundle
from ...pipelines.media.prepare import Arrays
from ...pipelines.media.volumes import Volume
from ...pipelines.spec import Assessed
from .autoscaling import ARRIVALS, CAPACITY, Arrivals
from .inputs import Task
from .messages import AssessRequest, Refusal, refusal
from .sandbox import Sandbox
from .scaling import Pace
from .spec import LimitsSpec
from .tracing import span

TASKS: Mapping[Assessed, Task] = {"document": "document", "picture": "whole-image", "volume": "volume"}
WARM = (1, 8)
"""Rows that a graph is warmed up with."""


class Assessor:
    """Assesses in the thread that computes, what is sent opened in the processes that decode.

    Args:
        bundle: that assesses something.
        computing: the replica's thread.
        sandbox: the replica's processes.
        limits: of what is sent.
    """

    def __init__(
        self, bundle: LoadedBundle, computing: ThreadPoolExecutor, sandbox: Sandbox, limits: LimitsSpec
    ) -> None:
        self._computing, self._sandbox, self._limits = computing, sandbox, limits
        self._pace, self._arrivals = Pace(1), Arrivals()
        kinds, marking = bundle.info.assesses, bundle.info.marking
        self._compares = marking is not None and marking.compares
        self._documents = DocumentAssessor(bundle) if "document" in kinds else None
        self._pictures = PictureAssessor(bundle) if "picture" in kinds else None
        self._volumes = VolumeAssessor(bundle) if "volume" in kinds else None
        self._reads_beside = marking is not None and marking.reads_text
        for graph in (DOCUMENT, BESIDE, MARKS, ANOMALY):
            for rows in WARM if graph in bundle.info.graphs else ():  # the first run of a shape makes room
                begun = time.monotonic()
                blank = bundle.blank(graph)
                bundle.run(graph, {name: one[None].repeat(rows, axis=0) for name, one in blank.items()})
                self._pace.add(1, time.monotonic() - begun)

    async def assess(self, request: AssessRequest) -> Assessment | Refusal:
        """Assess what is sent, or say why that can't be."""
        self._arrivals.add()
        if problem := self._beside(request):
            return problem
        found = await self._open(request)
        if isinstance(found, Refusal):
            # what is the matter with the content itself is a finding, too
            if found.status != HTTPStatus.UNPROCESSABLE_ENTITY:
                return found
            return NotAssessable(reason=found.problem.code, message=found.problem.message)
        work = self._work(request.kind, found, request.text)
        if isinstance(work, Refusal):
            return work
        with span("assess", modality=request.kind):
            return await asyncio.get_running_loop().run_in_executor(self._computing, self._timed, work)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Tell Serve's autoscaler what came lately, and what could have."""
        return {ARRIVALS: self._arrivals.per_s, CAPACITY: self._pace.capacity}

    def _beside(self, request: AssessRequest) -> Refusal | None:
        """Why a text that stands beside a picture or a volume isn't read."""
        if request.text is None or request.kind == "document":
            return None
        if not self._reads_beside:
            message = f"the bundle reads no text beside a {request.kind}"
            return refusal(422, "text-not-read", message, f"send the {request.kind} alone")
        most = self._limits.max_document_chars
        if len(request.text) > most:
            message = f"the text has {len(request.text):,} characters, over {most:,}"
            return refusal(413, "document-too-long", message, "send what is said of the findings")
        return None

    async def _open(self, request: AssessRequest) -> Arrays | Refusal:
        if request.kind == "document" and request.text is not None:
            return {"text": np.frombuffer(request.text.encode(), np.uint8)}
        sent = request.document or request.image or request.volume or ""
        with span("prepare", modality=request.kind):
            found = await self._sandbox.open(TASKS[request.kind], sent.encode())
            if request.reference is None or isinstance(found, Refusal):
                return found
            compared = await self._sandbox.open("whole-image", request.reference.encode())
            return compared if isinstance(compared, Refusal) else {**found, "reference": compared["pixels"]}

    def _work(self, kind: Assessed, found: Arrays, beside: str | None) -> Callable[[], Assessment] | Refusal:
        if kind == "document":
            assert self._documents is not None
            text, most = found["text"].tobytes().decode(), self._limits.max_document_chars
            if len(text) > most:
                message = f"the document has {len(text):,} characters, over {most:,}"
                return refusal(413, "document-too-long", message, "send it in parts")
            return partial(self._documents.assess, text)
        if kind == "picture":
            assert self._pictures is not None
            if "reference" in found and not self._compares:
                message = "the model doesn't compare a picture with a reference"
                return refusal(422, "no-comparison", message, "send the image alone")
            return partial(self._pictures.assess, found["pixels"], found.get("reference"), beside)
        assert self._volumes is not None
        where = (found[name] for name in ("voxels", "spacing_mm", "origin_mm", "direction"))
        return partial(self._volumes.assess, Volume(*where), beside)

    def _timed(self, work: Callable[[], Assessment]) -> Assessment:
        begun = time.monotonic()
        found = work()
        self._pace.add(1, time.monotonic() - begun)
        return found
