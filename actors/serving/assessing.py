"""The part of a replica that assesses whole documents, one after the other."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus

from ...pipelines.assessing.documents import BATCH, DocumentAssessor
from ...pipelines.assessing.spec import DocumentAssessment, NotAssessable
from ...pipelines.bundle import DOCUMENT, LoadedBundle
from .autoscaling import ARRIVALS, CAPACITY, Arrivals
from .messages import AssessRequest, Refusal, refusal
from .sandbox import Sandbox
from .scaling import Pace
from .spec import LimitsSpec
from .tracing import span


class Assessor:
    """Assesses in the thread that computes, what is sent opened in the processes that decode.

    Args:
        bundle: with a graph for it.
        computing: the replica's thread.
        sandbox: the replica's processes.
        limits: of what is sent.
    """

    def __init__(
        self, bundle: LoadedBundle, computing: ThreadPoolExecutor, sandbox: Sandbox, limits: LimitsSpec
    ) -> None:
        self._documents, self._computing = DocumentAssessor(bundle), computing
        self._sandbox, self._limits = sandbox, limits
        self._pace, self._arrivals = Pace(1), Arrivals()
        blank = bundle.blank(DOCUMENT)
        for rows in (1, BATCH):  # the first run of a shape makes room for it
            begun = time.monotonic()
            bundle.run(DOCUMENT, {name: array[None].repeat(rows, axis=0) for name, array in blank.items()})
            self._pace.add(1, time.monotonic() - begun)

    async def assess(self, request: AssessRequest) -> DocumentAssessment | NotAssessable | Refusal:
        """Assess a document, or say why that can't be."""
        self._arrivals.add()
        text = request.text
        if text is None:
            with span("prepare", modality="document"):
                found = await self._sandbox.open("document", (request.document or "").encode())
            if isinstance(found, Refusal):
                is_its_own = found.status == HTTPStatus.UNPROCESSABLE_ENTITY
                problem = found.problem
                return NotAssessable(reason=problem.code, message=problem.message) if is_its_own else found
            text = found["text"].tobytes().decode()
        if len(text) > self._limits.max_document_chars:
            message = f"the document has {len(text):,} characters, over {self._limits.max_document_chars:,}"
            return refusal(413, "document-too-long", message, "send it in parts")
        with span("assess", modality="document"):
            return await asyncio.get_running_loop().run_in_executor(self._computing, self._assess, text)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Tell Serve's autoscaler what came lately, and what could have."""
        return {ARRIVALS: self._arrivals.per_s, CAPACITY: self._pace.capacity}

    def _assess(self, text: str) -> DocumentAssessment | NotAssessable:
        begun = time.monotonic()
        found = self._documents.assess(text)
        self._pace.add(1, time.monotonic() - begun)
        return found
