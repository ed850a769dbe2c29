"""Judges what is asked and answered, where a replica speaks HTTP. It fails closed.

A text takes some hundredths of a millisecond. Pictures are scored where they are encoded, beside the
encoders; and what these find out anyway isn't computed again: the transcript of the speech, and which indexed
pictures are near.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import ParamSpec, TypeVar

from ....pipelines.bundle import BundleInfo
from ....pipelines.spec import EOS
from ....workflows.errors import EaglerayError
from ..answering import Answered
from ..batching import Observed
from ..decoding import Piece
from ..messages import Input, Judged, Judgement, Refusal, refusal
from ..problems import BLOCKED, RefusedError
from ..spec import ModerationSpec, TextPolicy
from .models import Scorer, Texts, check_installed
from .noting import note
from .policy import NEIGHBOURS, blocks, explain, judge_all, judge_pairs, remarks

_P = ParamSpec("_P")
_T = TypeVar("_T")
FILTERED = Piece("", EOS, 0.0, end="content_filter")
"""Ends an answer that may not be told."""
KEPT_TEXTS, KEPT_LETTERS = 4096, 500
"""Scores that are kept, of texts of so many letters at the most: captions come again and again."""
_logger = logging.getLogger("ray.serve")


def check(spec: ModerationSpec, bundle: BundleInfo) -> None:
    """Refuse to serve what can't be judged as the policy says.

    Raises:
        EaglerayError: when a package is missing, or the bundle can't transcribe speech that is to be judged.
    """
    check_installed()
    if spec.speech is not None and not bundle.transcribes:
        raise EaglerayError(
            "speech is to be moderated by its transcript, and the model doesn't transcribe",
            "train it with a weight for objective.transcription, or let speech pass unjudged "
            "(--set STAGE.moderation.speech=null)",
        )


def closed(judges: Callable[_P, _T]) -> Callable[_P, _T]:
    """Let a judgement that fails end the request: what wasn't judged doesn't pass."""

    @functools.wraps(judges)
    def guarded(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return judges(*args, **kwargs)
        except Exception:
            _logger.exception("moderation failed")
            message = "moderation failed, and nothing passes without it"
            failed = refusal(503, "moderation-failed", message, "try again shortly", retry_after_s=1)
            raise RefusedError(failed) from None

    return guarded


class Moderator:
    """The text models, loaded, and what scores come to.

    Args:
        spec: the policy.
        texts: scores texts; by default as the packages' models do.

    Attributes:
        spec: see above.

    Raises:
        EaglerayError: when a package is missing or can't be read.
    """

    def __init__(self, spec: ModerationSpec, texts: Scorer[str] | None = None) -> None:
        self.spec = spec
        self._texts = texts or Texts()
        self._kept = functools.lru_cache(KEPT_TEXTS)(self._texts.score)

    @property
    def neighbours(self) -> int:
        """How many indexed pictures near a picture the rules for pairs want to know."""
        return NEIGHBOURS if self.spec.pairs else 0

    async def inputs(self, inputs: Sequence[Input], observed: Observed) -> list[Judgement]:
        """See `judge`; long texts in a thread, for they take a while."""
        letters = len(observed.said) + sum(len(one.text or "") for one in inputs)
        if letters <= KEPT_LETTERS:
            return self.judge(inputs, observed)
        return await asyncio.to_thread(self.judge, inputs, observed)

    @closed
    def judge(self, inputs: Sequence[Input], observed: Observed) -> list[Judgement]:
        """Judge one input of each of some modalities, each by itself and together.

        Args:
            inputs: the inputs.
            observed: what was found out about picture and speech.
        """
        text = next((one.text for one in inputs if one.text is not None), "")
        has_image = any(one.image is not None for one in inputs)
        judged = self._text("text", text, self.spec.text) if text else []
        if has_image and self.spec.image is not None:
            if observed.scores is None:
                raise RuntimeError("the picture wasn't scored")
            judged += judge_all("image", observed.scores, self.spec.image)
        words = " ".join(filter(None, (text, observed.said)))
        if observed.said:  # with the text: what is begun in one may be ended in the other
            for said in dict.fromkeys((observed.said, words)):
                judged += self._text("speech", said, self.spec.speech)
        if has_image and words:
            judged += judge_pairs(self.spec.pairs, words, observed.nearest)
        return judged

    @closed
    def transcript(self, text: str) -> list[Judgement]:
        """Judge a transcript that is asked for."""
        return self._text("speech", text, self.spec.speech) + self._output(text)

    @closed
    def captions(self, captions: Sequence[str]) -> list[list[Judgement]]:
        """Judge captions that a search found, each."""
        return [self._output(caption) for caption in captions]

    @closed
    def answer(self, told: Answered) -> tuple[Answered, tuple[Judgement, ...]]:
        """An answer that may be told, or one that says nothing; and what is remarked about it."""
        judged = self._output(told.text)
        if blocks(judged):
            return replace(told, pieces=(FILTERED,)), remarks(judged)
        return replace(told, pieces=tuple(map(self._shared, told.pieces))), remarks(judged)

    async def stream(
        self, told: AsyncGenerator[Piece | Answered | Refusal]
    ) -> AsyncGenerator[Piece | Answered | Refusal]:
        """An answer's tokens, each once the words up to it may be told.

        A word is told when the next one begins: until then it may become another. Where the answer may not go
        on, it ends with `content_filter`.
        """
        gone: list[Piece] = []
        held: list[Piece] = []
        text = ""
        async with aclosing(told):
            async for one in told:
                if not isinstance(one, Piece):
                    yield one
                    continue
                if one.text[:1].isspace():  # the words before it are whole
                    if (ready := self._ready(held, text)) is None:
                        break
                    for piece in ready:
                        yield piece
                    gone, held = [*gone, *held], []
                held.append(one)
                text += one.text
                if one.end is None:
                    continue
                if (ready := self._ready(held, text)) is None:
                    break
                for piece in ready:
                    yield piece
            else:
                return
        yield FILTERED
        yield Answered((*gone, FILTERED), {}, {}, 0.0)

    @closed
    def _ready(self, held: Sequence[Piece], text: str) -> list[Piece] | None:
        """The tokens that were held, if the answer up to them may be told."""
        if blocked := blocks(self._output(text)):
            note(blocked)
            return None
        return [self._shared(piece) for piece in held]

    def _shared(self, piece: Piece) -> Piece:
        """A token without those of its alternatives that may not be told."""
        if not piece.likeliest:
            return piece
        told = [one for one in piece.likeliest if not blocks(self._output(one[0]))]
        return replace(piece, likeliest=tuple(told))

    def _output(self, text: str) -> list[Judgement]:
        return self._text("output", text, self.spec.output)

    def _text(self, of: Judged, text: str, policy: TextPolicy | None) -> list[Judgement]:
        if policy is None:
            return []
        score = self._kept if len(text) <= KEPT_LETTERS else self._texts.score
        return judge_all(of, score(text), policy)


def admit(judged: Iterable[Judgement]) -> tuple[Judgement, ...]:
    """What is remarked about a content that may pass; else end the request."""
    found = remarks(judged)
    note(found)
    if blocked := blocks(found):
        remedy = "ask for something else; the service's policy says what it takes"
        raise RefusedError(refusal(400, BLOCKED, f"blocked: {explain(blocked)}", remedy))
    return found
