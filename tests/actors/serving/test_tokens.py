"""Who may ask: what a token admits, and where it is kept."""

import stat
import time
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagleray.actors.serving.messages import Refusal
from eagleray.actors.serving.tokens import Access, Token, TokenFolder, issue
from eagleray.workflows.errors import EaglerayError


class Clock:
    """Stands still unless it is moved."""

    def __init__(self):
        self.now = 1_800_000_000.0

    def __call__(self):
        return self.now


def access_of(*tokens, clock=None):
    access = Access(lambda: {one.id: one for one in tokens}, clock or Clock())
    access.refresh()
    return access


def code(found):
    assert isinstance(found, Refusal), found
    return found.status, found.problem.code


def test_a_token_admits_to_what_it_is_for():
    token, sent = issue("ann", ("search",))
    access = access_of(token)
    assert access.admit(f"Bearer {sent}", "search") == token
    assert access.admit(f"bearer {sent}", "search") == token
    assert code(access.admit(f"Bearer {sent}", "embed")) == (403, "missing-scope")


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer  ", "Basic YTpi"])
def test_without_a_token_nobody_is_admitted(header):
    assert code(access_of(issue("ann")[0]).admit(header, "search")) == (401, "no-token")


@given(st.text())
def test_no_other_text_is_a_token(text):
    token, sent = issue("ann")
    for other in (
        text,
        f"eagleray.{token.id}.{text}",
        f"eagleray.{token.id}.",
        sent[:-1],
        f"x{sent}",
        token.digest,
    ):
        if other.strip() != sent and other.strip():
            assert code(access_of(token).admit(f"Bearer {other}", "search"))[0] == 401


def test_what_is_kept_does_not_tell_the_secret(tmp_path):
    token, sent = issue("ann")
    TokenFolder(str(tmp_path / "tokens")).add(token)
    (kept,) = (tmp_path / "tokens").iterdir()
    assert sent.rpartition(".")[2] not in kept.read_text()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_a_token_expires():
    clock = Clock()
    token, sent = issue("ann", expires=datetime.fromtimestamp(clock.now, UTC) + timedelta(seconds=5))
    access = access_of(token, clock=clock)
    assert access.admit(f"Bearer {sent}", "search") == token
    clock.now += 5
    assert code(access.admit(f"Bearer {sent}", "search")) == (401, "invalid-token")


@pytest.mark.parametrize("where", ["disk", "s3"])
def test_a_revoked_token_is_refused_two_seconds_later(where, tmp_path, s3_uri):
    folder = TokenFolder(str(tmp_path / "tokens") if where == "disk" else s3_uri())
    assert folder.all() == {}
    (token, sent), (other, _) = issue("ann"), issue("bob")
    for one in (token, other):
        folder.add(one)
    clock = Clock()
    access = Access(folder.all, clock)
    assert access.is_due
    access.refresh()
    assert access.admit(f"Bearer {sent}", "embed") == token
    assert folder.revoke(token.id) == token
    assert set(folder.all()) == {other.id}
    assert not access.is_due
    clock.now += 2
    assert access.is_due
    access.refresh()
    assert code(access.admit(f"Bearer {sent}", "embed")) == (401, "invalid-token")
    with pytest.raises(EaglerayError, match="there is no token"):
        folder.revoke(token.id)


def test_nobody_is_admitted_while_tokens_cannot_be_read():
    token, sent = issue("ann")
    answers = iter([{token.id: token}])
    access = Access(lambda: next(answers), Clock())
    access.refresh()
    with pytest.raises(StopIteration):
        access.refresh()
    assert code(access.admit(f"Bearer {sent}", "search")) == (503, "tokens-unreadable")


def test_who_is_known_is_admitted_while_tokens_are_read_again():
    token, sent = issue("ann")
    seen = []

    def read():
        seen.append(access.admit(f"Bearer {sent}", "search"))
        return {token.id: token}

    access = Access(read, Clock())
    access.refresh()
    access.refresh()
    assert code(seen[0]) == (401, "invalid-token")
    assert seen[1] == token


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(EaglerayError, match="no token") as caught:
        TokenFolder(str(tmp_path)).all()
    assert caught.value.where.endswith("a.json")


@given(st.floats(0.1, 20), st.lists(st.floats(0, 30), min_size=1, max_size=40))
def test_no_more_is_admitted_than_the_rate_allows(rate, pauses):
    clock = Clock()
    token, sent = issue("ann", requests_per_s=rate)
    access, began, admitted = access_of(token, clock=clock), clock.now, 0
    for pause in pauses:
        clock.now += pause
        found = access.admit(f"Bearer {sent}", "search")
        if isinstance(found, Token):
            admitted += 1
        else:
            assert found.problem.code == "too-many-requests"
            clock.now += found.retry_after_s  # as it was told to
            assert access.admit(f"Bearer {sent}", "search") == token
            admitted += 1
    assert admitted <= max(1, 10 * rate) + rate * (clock.now - began) + 1e-6


def test_a_days_quota_is_for_a_day():
    clock = Clock()
    token, sent = issue("ann", requests_per_day=2)
    access = access_of(token, clock=clock)
    for _ in range(2):
        assert access.admit(f"Bearer {sent}", "search") == token
    refused = access.admit(f"Bearer {sent}", "search")
    assert code(refused) == (429, "quota-used-up")
    clock.now += refused.retry_after_s
    assert access.admit(f"Bearer {sent}", "search") == token


def test_a_service_asks_for_tokens(ray_cluster, bundle_folder, free_port, tmp_path):
    from ray import serve

    from eagleray.actors.serving import running
    from eagleray.actors.serving.spec import ServingOptions

    where = str(tmp_path / "tokens")
    folder = TokenFolder(where)
    serve.shutdown()  # what other modules have served
    deployed = running.deploy(bundle_folder, ServingOptions(port=free_port, tokens=where))
    try:
        assert folder.all() == {}  # that of the first request is gone
        assert '-H "authorization: Bearer $TOKEN"' in deployed.command
        token, sent = issue("ann", ("search",))
        folder.add(token)
        with httpx.Client(base_url=deployed.url, trust_env=False, timeout=30) as client:
            ask = {"text": "A frog."}
            refused = client.post("/v1/search", json=ask)
            assert (refused.status_code, refused.json()["code"]) == (401, "no-token")
            assert refused.headers["www-authenticate"] == "Bearer"
            assert client.get("/healthz").status_code == 200
            client.headers["authorization"] = f"Bearer {sent}"
            running_out = 50
            while (answer := client.post("/v1/search", json=ask)).status_code == 401 and running_out:
                running_out -= 1
                assert answer.json()["code"] == "invalid-token"
                time.sleep(0.1)
            assert answer.status_code == 200
            refused = client.post("/v1/embed", json={"inputs": [ask]})
            assert (refused.status_code, refused.json()["code"]) == (403, "missing-scope")
    finally:
        serve.shutdown()


def test_the_network_is_not_let_in_without_tokens(bundle_folder):
    from eagleray.actors.serving import running
    from eagleray.actors.serving.spec import ServingOptions

    with pytest.raises(EaglerayError, match="nothing checks who asks") as caught:
        running.deploy(bundle_folder, ServingOptions(host="0.0.0.0"))
    assert "eagleray tokens create" in caught.value.remedy


def test_a_relative_folder_is_refused():
    from eagleray.actors.serving.spec import ServingOptions

    with pytest.raises(ValueError, match="give an absolute one"):
        ServingOptions(tokens="tokens")
