"""A request has the time that whoever asks gives it; one that can't be answered in it is refused at once."""

import asyncio
import time

import httpx
import numpy as np
import openai
import pytest

from eagleray.actors.serving import deadlines
from eagleray.actors.serving.deadlines import MILLISECONDS, SECONDS, Outlook
from eagleray.actors.serving.messages import Health, Input
from eagleray.actors.serving.model import Model
from eagleray.actors.serving.problems import RefusedError
from eagleray.actors.serving.spec import LimitsSpec

HEALTH = Health(status="ok", bundle="d" * 64, embed_dim=4, application="test")


class OneAtATime:
    """Embeds an input in so many seconds, one after another."""

    def __init__(self, seconds):
        self.seconds, self.done = seconds, 0
        self._turn = asyncio.Lock()

    async def embed(self, query):
        async with self._turn:
            await asyncio.sleep(self.seconds)
            self.done += 1
            return np.zeros(4, np.float32)


async def ask(model, seconds):
    """What came of a request, and after how long."""
    begun = time.monotonic()
    deadlines.begin(seconds)
    try:
        await model.embed([Input(text="a")])
        found = "answered"
    except RefusedError as error:
        found = error.refusal.problem.code
    return found, time.monotonic() - begun


def test_what_cannot_be_in_time_is_refused_at_once_and_the_rest_is_in_time():
    async def run():
        replicas = OneAtATime(0.01)
        model = Model(replicas, HEALTH, LimitsSpec())
        for _ in range(20):
            assert (await ask(model, 1))[0] == "answered"
        asked = []
        for _ in range(400):  # four times what can be done
            asked.append(asyncio.create_task(ask(model, 0.2)))
            await asyncio.sleep(0.0025)
        return await asyncio.gather(*asked), await ask(model, 0.2)

    found, afterwards = asyncio.run(run())
    took = {code: [seconds for one, seconds in found if one == code] for code, _ in found}
    assert len(took["answered"]) > 50
    assert max(took["answered"]) < 0.3
    assert len(took["too-late"]) > 50
    assert np.median(took["too-late"]) < 0.05
    assert len(took.get("timeout", [])) < 0.5 * len(took["answered"])  # admitted, and late after all
    assert afterwards[0] == "answered"


def test_whoever_is_alone_is_never_refused_for_what_was_learned():
    async def run():
        replicas = OneAtATime(0.2)
        model = Model(replicas, HEALTH, LimitsSpec())
        assert (await ask(model, 1))[0] == "answered"
        replicas.seconds = 0.001
        return await ask(model, 0.1)

    assert asyncio.run(run())[0] == "answered"


def test_what_is_late_is_given_up():
    async def run():
        replicas = OneAtATime(0.2)
        found = await ask(Model(replicas, HEALTH, LimitsSpec()), 0.05)
        await asyncio.sleep(0.3)
        return found, replicas.done

    (code, seconds), done = asyncio.run(run())
    assert code == "timeout"
    assert seconds < 0.15
    assert done == 0


def test_too_much_ahead_is_told_before_anything_is_read_and_only_of_the_kind_that_is_slow():
    async def run():
        model = Model(OneAtATime(0.05), HEALTH, LimitsSpec(max_wait_s=0.2))
        told = [model.overloaded("embed")]
        await ask(model, 1)
        asked = [asyncio.create_task(ask(model, 5)) for _ in range(10)]
        await asyncio.sleep(0.01)
        told += [model.overloaded("embed"), model.overloaded("search")]
        await asyncio.gather(*asked)
        return [*told, model.overloaded("embed")]

    before, meanwhile, other, after = asyncio.run(run())
    assert (before, other, after) == (None, None, None)
    assert (meanwhile.status, meanwhile.problem.code, meanwhile.retry_after_s) == (503, "overloaded", 1)


def test_an_outlook_follows_how_fast_it_goes():
    outlook = Outlook()
    assert outlook.expect(1) == 0
    for _ in range(50):
        outlook.saw(4, 0.2)
    assert outlook.expect(40) == pytest.approx(2.0)
    for _ in range(100):
        outlook.saw(4, 0.1)
    assert outlook.expect(40) == pytest.approx(1.0, rel=0.01)


def test_a_deadline_is_only_ever_drawn_nearer():
    deadlines.begin(10)
    deadlines.tighten(2)
    deadlines.tighten(5)
    assert 1 < deadlines.left() <= 2


@pytest.mark.parametrize(
    "headers", [{MILLISECONDS: "0.001"}, {SECONDS: "0.000001"}], ids=["milliseconds", "seconds"]
)
def test_a_served_request_has_the_time_that_its_header_says(http, headers):
    response = http.post("/v1/search", json={"text": "A frog."}, headers=headers)
    assert response.status_code in (503, 504)
    assert response.json()["code"] in ("too-late", "timeout")
    assert response.headers.get("retry-after", "1") == "1"


def test_openais_client_says_how_long_it_waits(frogs):
    with httpx.Client(trust_env=False) as http:
        client = openai.OpenAI(base_url=f"{frogs}/v1", api_key="none", http_client=http, max_retries=0)
        told = {"x-stainless-read-timeout": "0.000001"}
        with pytest.raises(openai.InternalServerError, match=r"left|in the time"):
            client.embeddings.create(model="eagleray", input="a", extra_headers=told)
