"""What a replica counts and times. Ray exports it for Prometheus, with `ray_` before each name.

Each figure takes 2 to 10 µs of a CPU, an answer's all together 0.09 ms; so none is told of each token.
"""

from __future__ import annotations

from typing import Literal

from ray import serve
from ray.serve.exceptions import RayServeException
from ray.util.metrics import Counter, Gauge, Histogram

SECONDS = [0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0]
PART_SECONDS = [0.001, 0.002, 0.003, *SECONDS]
COUNTS = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]

Part = Literal["prepare", "queue", "encode", "first-token", "decode"]
"""An input's decoding; waiting for a batch; the batch's run; until an answer's first token; all of it."""


class Requests:
    """Requests of an interface, each once it is answered or refused."""

    def __init__(self) -> None:
        self._application = _application()
        self._count = Counter(
            "eagleray_requests",
            "Requests that were answered or refused.",
            ("application", "route", "status", "code", "bundle"),
        )
        self._seconds = Histogram(
            "eagleray_request_seconds",
            "Seconds from a request's head to the end of its answer.",
            SECONDS,
            ("application", "route", "bundle"),
        )

    def add(self, route: str, status: int, code: str, bundle: str, seconds: float) -> None:
        """Count one.

        Args:
            route: the path as it is declared, so that there are few.
            status: of HTTP; 499 if whoever asked went away.
            code: of the problem, if it was refused.
            bundle: digest of what answered.
            seconds: that it took.
        """
        tags = {"application": self._application, "route": route, "bundle": bundle[:12]}
        self._seconds.observe(seconds, tags)
        self._count.inc(1, {**tags, "status": str(status), "code": code})


class InHand:
    """Inputs that a process which speaks to clients has in hand.

    Args:
        bundle: digest of what they are for.
    """

    def __init__(self, bundle: str) -> None:
        self._gauge = Gauge("eagleray_in_hand", "Inputs in hand.", ("application", "bundle"))
        self._tags = {"application": _application(), "bundle": bundle[:12]}

    def set(self, count: int) -> None:
        """Tell how many there are now."""
        self._gauge.set(count, self._tags)


class Work:
    """What a replica's parts do."""

    def __init__(self) -> None:
        self._application = {"application": _application()}
        self._seconds = Histogram(
            "eagleray_part_seconds",
            "Seconds that a part took for an input or an answer.",
            PART_SECONDS,
            ("application", "part", "modality"),
        )
        self._rows = Histogram(
            "eagleray_batch_rows",
            "Rows that one run of a graph computed together.",
            COUNTS,
            ("application", "modality"),
        )
        self._tokens = Histogram("eagleray_answer_tokens", "Tokens of an answer.", COUNTS, ("application",))

    def took(self, part: Part, modality: str, seconds: float) -> None:
        """Tell how long a part took; `modality` is `answer` for those of the decoder."""
        self._seconds.observe(seconds, {**self._application, "part": part, "modality": modality})

    def ran(self, modality: str, rows: int) -> None:
        """Tell how many rows were computed together."""
        self._rows.observe(rows, {**self._application, "modality": modality})

    def answered(self, tokens: int) -> None:
        """Tell how long an answer is."""
        self._tokens.observe(tokens, self._application)


class DriftGauge:
    """How far what is asked lies from what was trained on; see `drift`."""

    def __init__(self) -> None:
        self._application = {"application": _application()}
        self._gauge = Gauge(
            "eagleray_drift",
            "Population stability index of what is asked against the training corpus.",
            ("application", "quantity"),
        )

    def set(self, quantity: str, index: float) -> None:
        """Tell it of a quantity."""
        self._gauge.set(index, {**self._application, "quantity": quantity})


def _application() -> str:
    """Name of the application that this process is a replica of; empty outside one."""
    try:
        return serve.get_replica_context().app_name
    except RayServeException:
        return ""
