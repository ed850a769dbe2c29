"""Answers, token by token: rows join and leave a batch between any two tokens.

Shape letters: B rows, N positions, M modalities, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from ...pipelines.bundle import LOG_PROBS, MAP, OWN, WEIGHTS, Arrays, LoadedBundle
from ...pipelines.spec import BOS, EOS, PAD

Floats = NDArray[np.float32]
End = Literal["stop", "length", "content_filter"]
"""Why an answer ends: by itself or a stop, at the longest that is asked for, or by moderation."""


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen.

    Attributes:
        max_tokens: of an answer, without those that begin and end it; the model's, if that is less or None.
        temperature: 0 takes the likeliest token; else log-probabilities are divided by it.
        top_p: only the likeliest tokens that together have this probability (arXiv 1904.09751, 3.1).
        seed: of the draws.
        stop: texts that end an answer, and are no part of it.
        top: how many of the likeliest tokens are told beside each.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    top: int = 0


@dataclass(frozen=True)
class Piece:
    """A token of an answer.

    Attributes:
        text: what it adds; empty as long as it ends in the middle of a letter, or at what may be a stop.
        token: its number.
        log_prob: of the model, before temperature, nats.
        likeliest: the likeliest tokens, as texts, and their log-probabilities.
        end: why the answer ends with it.
    """

    text: str
    token: int
    log_prob: float
    likeliest: tuple[tuple[str, float], ...] = ()
    end: End | None = None


@dataclass(eq=False)
class Answer:
    """An answer in the making.

    Attributes:
        sampling: how its tokens are chosen.
        weights: (M,) of the modalities.
        pieces: so far.
    """

    sampling: Sampling
    weights: Floats
    pieces: list[Piece] = field(default_factory=list[Piece])
    _maps: dict[str, Floats] = field(default_factory=dict[str, Floats])
    _held: str = ""

    def __post_init__(self) -> None:
        self._stream = DecodeStream(skip_special_tokens=True)
        self._random = np.random.default_rng(self.sampling.seed)

    @property
    def last(self) -> int:
        """The token that the next one follows."""
        return self.pieces[-1].token if self.pieces else BOS

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def maps(self) -> dict[str, Floats]:
        """Modality → how much was read at each position (N,), the mean over all tokens."""
        count = np.float32(max(1, len(self.pieces)))
        return {name: total / count for name, total in self._maps.items()}

    def add(self, log_probs: Floats, maps: Arrays, tokenizer: Tokenizer) -> Piece:
        """Choose the next token by log_probs (V,), which was found where `maps` (N,) say."""
        sampling = self.sampling
        token = choose(log_probs, sampling, self._random)
        for name, found in maps.items():
            self._maps[name] = self._maps[name] + found if name in self._maps else found
        end: End | None = None
        if token == EOS:
            end = "stop"
        else:
            self._held += self._stream.step(tokenizer, token) or ""
            if len(self.pieces) + 1 == sampling.max_tokens:
                end = "length"
        text, stopped = release(self._held, sampling.stop, final=end is not None)
        self._held = "" if stopped else self._held[len(text) :]
        order = np.argsort(-log_probs)[: sampling.top] if sampling.top else ()
        likeliest = tuple((tokenizer.decode([int(one)]), float(log_probs[one])) for one in order)
        piece = Piece(text, token, float(log_probs[token]), likeliest, "stop" if stopped else end)
        self.pieces.append(piece)
        return piece


class AnswerBatch:
    """Answers that are decoded side by side, of whatever lengths.

    Args:
        bundle: of a model that answers.
    """

    def __init__(self, bundle: LoadedBundle) -> None:
        self._bundle = bundle
        self._blank = bundle.blank("step")
        self._capacity = self._blank["own_memory"].shape[3]
        self.answers: list[Answer] = []
        self._evidence: dict[str, NDArray[np.generic]] = {}
        self._own: Floats = self._empty(0)

    @property
    def max_tokens(self) -> int:
        """Of an answer, without those that begin and end it."""
        return self._capacity - 1

    def join(self, evidence: Arrays, samplings: Sequence[Sampling]) -> list[Answer]:
        """Begin answers to what `LoadedBundle.gather` made of some rows."""
        begun = [
            Answer(replace(how, max_tokens=min(how.max_tokens or self.max_tokens, self.max_tokens)), row)
            for how, row in zip(samplings, evidence[WEIGHTS], strict=True)
        ]
        self._evidence = {
            name: np.concatenate((self._evidence[name], rows)) if self.answers else rows
            for name, rows in evidence.items()
        }
        self._own = np.concatenate((self._own, self._empty(len(begun))))
        self.answers += begun
        return begun

    def step(self) -> list[tuple[Answer, Piece]]:
        """Add a token to every answer; those that end with it leave."""
        answers = self.answers
        feed = {
            "token": np.array([[one.last] for one in answers], np.int64),
            "length": np.array([len(one.pieces) + 1 for one in answers], np.int64),
            "own_memory": self._own,
            **self._evidence,
        }
        found = self._bundle.run("step", feed)
        self._own = found[OWN]
        maps = {name.removeprefix(MAP): rows for name, rows in found.items() if name.startswith(MAP)}
        added = [
            (
                one,
                one.add(
                    found[LOG_PROBS][i], {m: rows[i] for m, rows in maps.items()}, self._bundle.tokenizer
                ),
            )
            for i, one in enumerate(answers)
        ]
        self._keep([i for i, (_, piece) in enumerate(added) if piece.end is None])
        return added

    def leave(self, answer: Answer) -> None:
        """Give an answer up; nothing if it has ended."""
        self._keep([i for i, one in enumerate(self.answers) if one is not answer])

    def _keep(self, rows: Sequence[int]) -> None:
        if len(rows) < len(self.answers):
            self.answers = [self.answers[row] for row in rows]
            self._own = self._own[list(rows)]
            self._evidence = {name: array[list(rows)] for name, array in self._evidence.items()}

    def _empty(self, num_rows: int) -> Floats:
        return np.zeros((num_rows, *self._blank["own_memory"].shape), np.float32)


def choose(log_probs: Floats, sampling: Sampling, random: np.random.Generator) -> int:
    """The next token, by log_probs (V,); never one that says nothing or begins a text."""
    allowed = log_probs.astype(np.float64)
    allowed[[PAD, BOS]] = -np.inf
    if sampling.temperature <= 0:
        return int(allowed.argmax())
    scaled = allowed / sampling.temperature
    order = np.argsort(-scaled, kind="stable")
    shares = np.exp(scaled[order] - scaled[order[0]])
    shares /= shares.sum()
    before = np.cumsum(shares) - shares  # of those that are likelier
    shares[before >= sampling.top_p] = 0
    return int(order[random.choice(len(order), p=shares / shares.sum())])


def release(held: str, stops: Sequence[str], *, final: bool) -> tuple[str, bool]:
    """What of a text can be told, and whether a stop is in it, before which it ends.

    Args:
        held: the text.
        stops: texts that end it.
        final: whether nothing comes any more; else what may be the beginning of a stop is kept back.
    """
    places = [place for stop in stops if (place := held.find(stop)) >= 0]
    if places:
        return held[: min(places)], True
    if final:
        return held, False
    kept = max(
        (length for stop in stops for length in range(1, len(stop)) if held.endswith(stop[:length])),
        default=0,
    )
    return held[: len(held) - kept], False
