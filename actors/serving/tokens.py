"""Who may ask: bearer tokens with scopes, of which only hashes are kept, one file each.

A token is `eagleray.ID.SECRET` (RFC 6750). The secret is 256 random bits, so that a plain hash of it tells
nothing (a slow one guards passwords, which are guessed). A token's file is made when it is created and
deleted when it is revoked: nothing is ever changed, so nothing needs a lock, on a disk or in object storage.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from typing import Literal, get_args

from pyarrow import fs
from pydantic import Field, ValidationError

from ...workflows.errors import EaglerayError
from ...workflows.spec import Spec
from .messages import Refusal, refusal

Scope = Literal["embed", "search", "answer", "transcribe", "classify", "assess", "moderate", "watch"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
PREFIX = "eagleray"
READS_EVERY_S = 2.0
"""Seconds after which a revoked token is refused, at the latest."""
DAY_S = 86_400.0


class Token(Spec):
    """What is kept of a token."""

    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    name: str = Field(min_length=1, max_length=100)
    """Whose it is, for people."""
    scopes: tuple[Scope, ...] = Field(min_length=1)
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of its secret, hex."""
    created: datetime
    expires: datetime | None = None
    requests_per_s: float | None = Field(default=None, gt=0)
    """Requests a second in the long run; up to ten seconds' worth at once."""
    requests_per_day: int | None = Field(default=None, ge=1)


def issue(
    name: str,
    scopes: tuple[Scope, ...] = SCOPES,
    *,
    expires: datetime | None = None,
    requests_per_s: float | None = None,
    requests_per_day: int | None = None,
) -> tuple[Token, str]:
    """Make a token: what is kept of it, and what its holder sends, which is never seen again."""
    number, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    token = Token(
        id=number,
        name=name,
        scopes=scopes,
        digest=_digest(secret),
        created=datetime.now(UTC),
        expires=expires,
        requests_per_s=requests_per_s,
        requests_per_day=requests_per_day,
    )
    return token, f"{PREFIX}.{number}.{secret}"


class TokenFolder:
    """Tokens where replicas and people reach them.

    Args:
        where: a folder, or a URI such as s3://bucket/tokens.
    """

    def __init__(self, where: str) -> None:
        uri = where if "://" in where else Path(where).absolute().as_uri()
        self._files, self._path = fs.FileSystem.from_uri(uri)

    def add(self, token: Token) -> None:
        """Keep a token; on a disk, for its owner's eyes."""
        path = self._file(token.id)
        self._files.create_dir(self._path, recursive=True)
        if isinstance(self._files, fs.LocalFileSystem):
            Path(path).touch(mode=0o600)
        with self._files.open_output_stream(path) as file:
            file.write(token.model_dump_json(indent=1).encode())

    def all(self) -> dict[str, Token]:
        """Id → token.

        Raises:
            EaglerayError: when one can't be read, with which.
        """
        selector = fs.FileSelector(self._path, allow_not_found=True)
        found: dict[str, Token] = {}
        for info in self._files.get_file_info(selector):
            if info.extension != "json":
                continue
            try:
                with self._files.open_input_stream(info.path) as file:
                    token = Token.model_validate_json(file.read())
            except FileNotFoundError:  # revoked this moment
                continue
            except ValidationError as error:
                raise EaglerayError(
                    f"no token: {error.errors()[0]['msg']}", "delete it, and create another", info.path
                ) from None
            found[token.id] = token
        return found

    def revoke(self, number: str) -> Token:
        """Forget a token.

        Raises:
            EaglerayError: when there is none of that id.
        """
        known = self.all()
        if number not in known:
            raise EaglerayError(f"there is no token {number}", "`eagleray tokens list` has their ids")
        self._files.delete_file(self._file(number))
        return known[number]

    def _file(self, number: str) -> str:
        return f"{self._path}/{number}.json"


@dataclass
class _Use:
    """What a token may still ask."""

    allowance: float
    since: float
    today: int = 0
    day: int = -1


@dataclass
class Access:
    """Decides about requests, by the tokens of a moment ago.

    Args:
        read: gives the tokens, by id.
        clock: seconds since the epoch.
    """

    read: Callable[[], Mapping[str, Token]]
    clock: Callable[[], float] = time.time
    _tokens: Mapping[str, Token] = field(default_factory=dict)
    _read_at: float = float("-inf")
    _is_unreadable: bool = False
    _uses: dict[str, _Use] = field(default_factory=dict)

    @property
    def is_due(self) -> bool:
        """Whether what is known is too old."""
        return self.clock() - self._read_at >= READS_EVERY_S

    def refresh(self) -> None:
        """Read the tokens; if that fails, nobody is admitted by what was known."""
        self._read_at = self.clock()
        try:
            self._tokens = self.read()  # meanwhile others go by what was known
            self._is_unreadable = False
        except BaseException:
            self._tokens, self._is_unreadable = {}, True
            raise

    async def keep_fresh(self) -> None:
        """Read the tokens in a thread, if what is known is too old."""
        if self.is_due:
            await asyncio.to_thread(self.refresh)

    def admit(self, authorization: str | None, scope: Scope) -> Token | Refusal:
        """The token of a request with that header, or why it is refused."""
        now = self.clock()
        if not _bearer(authorization):
            return refusal(
                401, "no-token", "the request has no token", "send the header authorization: Bearer TOKEN"
            )
        if self._is_unreadable:
            return refusal(
                503, "tokens-unreadable", "the service can't read its tokens", "try again", retry_after_s=2
            )
        token = self.known(authorization)
        if token is None or (token.expires is not None and token.expires.timestamp() <= now):
            return refusal(
                401, "invalid-token", "the token is unknown, revoked or expired", "ask for another one"
            )
        if scope not in token.scopes:
            return refusal(
                403,
                "missing-scope",
                f"the token is for {', '.join(token.scopes)}, not for {scope}",
                "ask for one with that scope",
            )
        return self._spend(token, now) or token

    def known(self, authorization: str | None) -> Token | None:
        """Whose token a request with that header has, expired or not; None if nobody's."""
        prefix, _, rest = _bearer(authorization).partition(".")
        number, _, secret = rest.partition(".")
        token = self._tokens.get(number)
        # as long for an id that isn't known as for one that is
        matches = hmac.compare_digest(_digest(secret), "0" * 64 if token is None else token.digest)
        return token if matches and prefix == PREFIX else None

    def _spend(self, token: Token, now: float) -> Refusal | None:
        rate, daily = token.requests_per_s, token.requests_per_day
        most = max(1.0, 10 * rate) if rate is not None else 0.0
        use = self._uses.setdefault(token.id, _Use(most, now))
        today = int(now // DAY_S)
        if use.day != today:
            use.day, use.today = today, 0
        if daily is not None and use.today >= daily:
            return refusal(
                429,
                "quota-used-up",
                f"the token has asked its {daily} requests of today",
                "wait until tomorrow (UTC)",
                retry_after_s=ceil((today + 1) * DAY_S - now),
            )
        if rate is not None:
            use.allowance = min(most, use.allowance + (now - use.since) * rate)
            use.since = now
            if use.allowance < 1:
                wait = ceil((1 - use.allowance) / rate)
                return refusal(
                    429,
                    "too-many-requests",
                    f"the token may ask {rate:g} times a second",
                    f"wait {wait} s",
                    retry_after_s=wait,
                )
            use.allowance -= 1
        use.today += 1
        return None


def _bearer(authorization: str | None) -> str:
    """The token in a header; empty if there is none."""
    kind, _, sent = (authorization or "").partition(" ")
    return sent.strip() if kind.lower() == "bearer" else ""


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
