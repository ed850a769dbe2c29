"""Requests go to the live bundle, a share of them to the one that is tried, and none is cut short."""

import asyncio
import json

import httpx
import pytest

from eagleray.actors.serving.guard import BUNDLE_HEADER, MIRRORED
from eagleray.actors.serving.releases import KEPT, Release, Releases, Trial
from eagleray.actors.serving.switching import Switch, Tally

A, B, C = ("a" * 64, "b" * 64, "c" * 64)


class Line:
    """Answers with its name, a status, and what it was sent."""

    def __init__(self, bundle, status=200):
        self.bundle, self.status, self.closed = bundle, status, False
        self.let = asyncio.Event()
        self.let.set()
        self.heard = []

    async def api(self, scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.heard.append((scope["path"], body, scope.get(MIRRORED, False)))
        await self.let.wait()
        assert not self.closed
        headers = [(BUNDLE_HEADER.encode(), self.bundle.encode())]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(self.bundle[0]).encode()})

    def close(self):
        self.closed = True


def client(switch):
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=switch), base_url="http://test")


async def ask(switch, path="/v1/search", **headers):
    async with client(switch) as http:
        response = await http.post(path, content=b"hello", headers=headers)
        return response.status_code, response.json()


def switched(live, candidate=None, trial=None, draws=()):
    pending = iter(draws)
    switch = Switch(draw=lambda: next(pending))
    switch.turn(live, candidate, trial)
    return switch


def test_the_live_one_answers_and_another_whoever_asks_for_it():
    async def run():
        switch = switched(Line(A), Line(B))
        return [
            await ask(switch),
            await ask(switch, **{BUNDLE_HEADER: B}),
            await ask(switch, **{BUNDLE_HEADER: B[:8]}),
            await ask(switch, **{BUNDLE_HEADER: "b"}),
            await ask(switch, **{BUNDLE_HEADER: C}),
        ]

    live, whole, prefix, short, unknown = asyncio.run(run())
    assert (live, whole, prefix) == ((200, "a"), (200, "b"), (200, "b"))
    assert (short[0], unknown[0]) == (404, 404)
    assert unknown[1]["code"] == "unknown-bundle"


def test_a_share_is_answered_by_the_one_that_is_tried_and_pages_are_not():
    async def run():
        live, other = Line(A), Line(B, 500)
        switch = switched(live, other, Trial(mode="split", share=0.25), [0.1, 0.5, 0.24, 0.25])
        told = [(await ask(switch))[1] for _ in range(4)]
        told.append((await ask(switch, "/healthz"))[1])
        return told, switch.tallies

    told, tallies = asyncio.run(run())
    assert told == ["b", "a", "b", "a", "a"]
    assert tallies == {A: Tally(2, 0), B: Tally(2, 2)}


def test_a_mirrored_request_is_answered_by_the_live_one_and_asked_again_unseen():
    async def run():
        live, other = Line(A), Line(B)
        other.let.clear()  # it would never answer
        switch = switched(live, other, Trial(mode="mirror", share=0.5), [0.1, 0.9])
        told = [await ask(switch), await ask(switch)]
        other.let.set()
        await asyncio.sleep(0.05)
        return told, live.heard, other.heard, switch.tallies

    told, heard, again, tallies = asyncio.run(run())
    assert told == [(200, "a")] * 2
    assert heard == [("/v1/search", b"hello", False)] * 2
    assert again == [("/v1/search", b"hello", True)]
    assert tallies[B].answered == 1


@pytest.mark.parametrize(("status", "ends_trial"), [(401, False), (503, False), (200, True)])
def test_what_was_not_admitted_or_comes_after_the_trial_is_not_mirrored(status, ends_trial):
    async def run():
        live, other = Line(A, status), Line(B)
        live.let.clear()
        switch = switched(live, other, Trial(mode="mirror", share=1), [0.1])
        asked = asyncio.create_task(ask(switch))
        await asyncio.sleep(0.02)
        if ends_trial:
            switch.turn(live, None, None)
        live.let.set()
        told = await asked
        await asyncio.sleep(0.1)
        return told, other.heard, other.closed

    told, heard, closed = asyncio.run(run())
    assert (told, heard, closed) == ((status, "a"), [], ends_trial)


def test_who_asks_by_name_is_not_counted():
    async def run():
        switch = switched(Line(A), Line(B, 500))
        await ask(switch, **{BUNDLE_HEADER: B})
        return switch.tallies

    assert asyncio.run(run()) == {A: Tally(), B: Tally()}


def test_what_a_bundle_has_begun_it_ends_before_it_is_let_go():
    async def run():
        old, new = Line(A), Line(B)
        switch = switched(old)
        old.let.clear()
        begun = asyncio.create_task(ask(switch))
        await asyncio.sleep(0.02)
        switch.turn(new, None, None)
        after = await ask(switch)
        closed = old.closed
        old.let.set()
        told = await begun
        await asyncio.sleep(0.15)
        return closed, told, after, old.closed

    assert asyncio.run(run()) == (False, (200, "a"), (200, "b"), True)


def test_turning_begins_new_tallies_and_keeps_lines():
    async def run():
        live, other = Line(A), Line(B)
        switch = switched(live, other)
        await ask(switch)
        switch.turn(other, None, None)
        await asyncio.sleep(0.1)
        return switch.tallies, live.closed, other.closed

    assert asyncio.run(run()) == ({B: Tally()}, True, False)


def test_releases_remember_a_few_and_each_once():
    made = Releases(live=Release(bundle="0", folder="/0"))
    for i in (*range(1, 9), 3):
        made = made.followed_by(Release(bundle=str(i), folder=f"/{i}"))
    assert made.live.bundle == "3"
    assert [one.bundle for one in made.previous] == ["8", "7", "6", "5", "4"]
    assert len(made.previous) == KEPT
    back = made.gone_back()
    assert (back.live.bundle, back.previous[0].bundle) == ("8", "7")
    assert made.followed_by(made.live) == made
