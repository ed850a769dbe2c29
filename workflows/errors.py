"""The one error people meet: what happened, what to do about it, and where."""

from __future__ import annotations


class EaglerayError(Exception):
    """An error with a cause and a remedy, shown once, at the edge, without a traceback.

    Args:
        cause: what happened, in one sentence, with the offending value.
        remedy: what the person can do about it; empty when nothing can be done.
        where: the file, line and column, field path, stage or address it happened at.
        retryable: whether the same may go well a moment later, without anyone's doing.
    """

    def __init__(self, cause: str, remedy: str = "", where: str = "", retryable: bool = False) -> None:
        super().__init__(cause, remedy, where, retryable)  # all, so that the error survives pickling
        self.cause = cause
        self.remedy = remedy
        self.where = where
        self.retryable = retryable

    def __str__(self) -> str:
        head = f"{self.where}: {self.cause}" if self.where else self.cause
        return f"{head}\n  → {self.remedy}" if self.remedy else head
