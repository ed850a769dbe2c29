"""The audit log: a line for each request, nothing of its contents, and no request without a line."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import stat
import time

import httpx
import numpy as np
import pytest

from eagleray.actors.serving import auditing
from eagleray.actors.serving.auditing import AuditLog
from eagleray.actors.serving.ingress import build_api
from eagleray.actors.serving.messages import Health
from eagleray.actors.serving.spec import LimitsSpec, ServingOptions
from eagleray.actors.serving.tokens import Access, issue
from eagleray.workflows.errors import EaglerayError

DIGEST = "d" * 64
SECRET_TEXT = "a text that is nobody's business"


class Echo:
    """Embeds anything as ones."""

    async def embed(self, query):
        return np.ones(4, np.float32)


@pytest.fixture
def log(tmp_path):
    log = AuditLog(tmp_path / "audit")
    yield log
    log.close()


@pytest.fixture
def tokens():
    """A token for embedding, one for searching, and what their holders send."""
    return issue("ann", ("embed",)), issue("bob", ("search",))


def ask(log, tokens, *requests):
    """Answers to (path, body, headers)."""
    access = Access(lambda: {token.id: token for token, _ in tokens})
    health = Health(status="ok", bundle=DIGEST, embed_dim=4, application="test")
    api = build_api(Echo(), health, ServingOptions(limits=LimitsSpec(max_body_bytes=2000)), access, log)

    async def call():
        transport = httpx.ASGITransport(app=api)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return [await client.post(path, json=body, headers=headers) for path, body, headers in requests]

    return asyncio.run(call())


def embed(sent, text=SECRET_TEXT, **headers):
    return "/v1/embed", {"inputs": [{"text": text}]}, {"authorization": f"Bearer {sent}", **headers}


def lines_of(log):
    assert log.flush(10)
    files = sorted(log._folder.iterdir())
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_a_line_tells_who_asked_what_and_how_it_ended(log, tokens):
    (ann, sent), _ = tokens
    (answer,) = ask(log, tokens, embed(sent, **{"x-request-id": "r1"}))
    (line,) = lines_of(log)
    took, at = line.pop("ms"), line.pop("time")
    assert line == {
        "request": "r1",
        "token": ann.id,
        "name": "ann",
        "path": "/v1/embed",
        "status": 200,
        "refused": None,
        "bundle": DIGEST,
        "bytes_in": len(answer.request.content),
        "bytes_out": len(answer.content),
    }
    assert 0 < took < 10_000
    assert at.endswith("+00:00")


def test_refusals_have_lines_with_their_codes(log, tokens):
    (_, ann), (bob, bobs) = tokens
    ask(log, tokens, embed("nonsense"), embed(bobs), embed(ann, "x" * 3000), embed(ann, ""))
    found = [(line["status"], line["refused"], line["name"]) for line in lines_of(log)]
    assert found == [
        (401, "invalid-token", None),
        (403, "missing-scope", "bob"),
        (413, "body-too-large", "ann"),
        (422, "invalid-request", "ann"),
    ]
    assert lines_of(log)[1]["token"] == bob.id


def test_nothing_of_contents_or_secrets_is_kept(log, tokens):
    (_, sent), _ = tokens
    ask(
        log,
        tokens,
        embed(sent),
        ("/v1/embed?text=hidden", {"inputs": []}, {"authorization": f"Bearer {sent}"}),
    )
    assert len(lines_of(log)) == 2
    kept = "".join(file.read_text() for file in log._folder.iterdir())
    for secret in (SECRET_TEXT, sent, sent.rpartition(".")[2], "hidden"):
        assert secret not in kept


def test_what_tells_nothing_of_the_model_has_no_line(log, tokens):
    ask(log, tokens, ("/healthz", {}, {}), ("/nope", {}, {}))
    assert lines_of(log) == []


def test_a_request_without_an_id_gets_one_and_a_long_one_is_cut(log, tokens):
    (_, sent), _ = tokens
    ask(log, tokens, embed(sent), embed(sent), embed(sent, **{"x-request-id": "x" * 5000}))
    first, second, third = (line["request"] for line in lines_of(log))
    assert len({first, second}) == 2
    assert third == "x" * auditing.LONGEST_ID


def test_files_and_folder_are_for_their_owner_alone(log):
    (file,) = log._folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(log._folder.stat().st_mode) == 0o700


def test_a_full_disk_refuses_requests_until_lines_can_be_written_and_loses_none(log, tokens, monkeypatch):
    (_, sent), _ = tokens
    monkeypatch.setattr(auditing, "RETRIES_EVERY_S", 0.05)
    write = os.write

    def full(file, data):
        if file != log._file:
            return write(file, data)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    assert ask(log, tokens, embed(sent))[0].status_code == 200  # it was admitted before that was known
    deadline = time.monotonic() + 10
    while not log.problem:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (refused,) = ask(log, tokens, embed(sent))
    assert (refused.status_code, refused.json()["code"]) == (503, "audit-unavailable")
    assert refused.headers["retry-after"] == "1"
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:7]))  # and then in small parts
    assert log.flush(10)
    assert ask(log, tokens, embed(sent))[0].status_code == 200
    assert [line["refused"] for line in lines_of(log)] == [None, "audit-unavailable", None]


def test_more_lines_than_may_wait_refuse_requests(log, tokens, monkeypatch):
    (_, sent), _ = tokens
    monkeypatch.setattr(auditing, "MOST_WAITING", 0)
    assert ask(log, tokens, embed(sent))[0].json()["code"] == "audit-unavailable"


def test_a_deleted_file_is_replaced(log, tokens):
    (_, sent), _ = tokens
    for file in log._folder.iterdir():
        file.unlink()
    log._folder.rmdir()
    ask(log, tokens, embed(sent))
    assert len(lines_of(log)) == 1


def test_a_file_ends_with_its_day_and_when_it_is_large(tmp_path):
    now = [1_800_000_000.0]
    log = AuditLog(tmp_path, max_file_bytes=100, clock=lambda: now[0])
    for _ in range(3):
        log.write({"a": "b" * 60})
        assert log.flush(10)
    assert len(list(tmp_path.iterdir())) == 2
    now[0] += 86_400
    log.write({"a": "b"})
    assert log.flush(10)
    assert len({file.name[:10] for file in tmp_path.iterdir()}) == 2
    assert len([line for file in tmp_path.iterdir() for line in file.read_text().splitlines()]) == 4
    log.close()


def test_a_folder_that_can_not_be_written_is_said_at_once(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(EaglerayError, match="audit log can't be written"):
        AuditLog(tmp_path / "file" / "audit")
