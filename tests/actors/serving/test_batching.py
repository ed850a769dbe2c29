"""What waits together is encoded together, nobody waits for others, and a failure is its batch's own."""

import asyncio
import threading

import numpy as np
import pytest

from eagleray.actors.serving.batching import Encoder
from eagleray.actors.serving.messages import Input, Refusal
from eagleray.actors.serving.spec import LimitsSpec

pytestmark = pytest.mark.usefixtures("ray_cluster")


class Slow:
    """A bundle whose graphs run when they are let, and that keeps what ran."""

    def __init__(self, bundle):
        self._bundle = bundle
        self.let, self.begun = threading.Event(), threading.Event()
        self.ran = []
        self.let.set()

    def __getattr__(self, name):
        return getattr(self._bundle, name)

    def encode(self, modality, rows):
        self.begun.set()
        assert self.let.wait(10)
        self.ran.append((modality, len(rows)))
        return self._bundle.encode(modality, rows)


@pytest.fixture
def slow(loaded_bundle):
    return Slow(loaded_bundle)


@pytest.fixture
def encoder(slow):
    made = Encoder(lambda: slow, 3, LimitsSpec(), 1)
    slow.ran.clear()
    slow.begun.clear()
    yield made
    made.close()


def texts(count):
    return [Input(text=f"A frog, number {i}.") for i in range(count)]


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def behind_one_that_runs(encoder, slow, count):
    """A text whose batch runs until it is let, and some that wait behind it."""
    slow.let.clear()
    asked = [asyncio.create_task(encoder.embed(texts(1)[0]))]
    await until(slow.begun.is_set)
    asked += [asyncio.create_task(encoder.embed(one)) for one in texts(count)]
    await until(lambda: len(encoder._queues["text"]) == count)
    return asked


def test_what_came_while_a_batch_ran_is_the_next_ones_up_to_the_largest_size(encoder, slow, loaded_bundle):
    async def run():
        asked = await behind_one_that_runs(encoder, slow, 5)
        slow.let.set()
        return await asyncio.gather(*asked)

    found = asyncio.run(run())
    assert slow.ran == [("text", 1), ("text", 3), ("text", 2)]
    expected = loaded_bundle.embed("text", [loaded_bundle.prepare_text(one.text) for one in texts(5)])
    np.testing.assert_allclose(found[1:], expected, atol=1e-6)
    assert encoder.batch_sizes() == {"text": {1: 1, 2: 1, 3: 1}}


def test_each_modality_has_a_queue_and_neither_waits_for_all_of_the_other(encoder, slow, png):
    import base64

    async def run():
        asked = await behind_one_that_runs(encoder, slow, 6)
        picture = Input(image=base64.b64encode(png).decode())
        asked.append(asyncio.create_task(encoder.embed(picture)))
        await until(lambda: len(encoder._queues["image"]) == 1)
        slow.let.set()
        await asyncio.gather(*asked)

    asyncio.run(run())
    assert sorted(slow.ran) == [("image", 1), ("text", 1), ("text", 3), ("text", 3)]
    assert slow.ran.index(("image", 1)) < 3


def test_whoever_goes_away_takes_nothing_from_the_others(encoder, slow, loaded_bundle):
    async def run():
        first, gone, stays = await behind_one_that_runs(encoder, slow, 2)
        gone.cancel()
        slow.let.set()
        await first
        return await stays

    found = asyncio.run(run())
    (expected,) = loaded_bundle.embed("text", [loaded_bundle.prepare_text("A frog, number 1.")])
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_failure_reaches_whoever_asked_and_the_next_are_served(encoder, slow, monkeypatch):
    def fail(modality, rows):
        raise MemoryError("no memory")

    async def run():
        with monkeypatch.context() as patch:
            patch.setattr(slow, "encode", fail)
            with pytest.raises(MemoryError):
                await encoder.embed(texts(1)[0])
        return await encoder.embed(texts(1)[0])

    assert asyncio.run(run()).shape == (16,)


def test_an_input_that_can_not_be_read_is_refused_alone(encoder):
    async def run():
        return await asyncio.gather(encoder.embed(Input(image="!")), encoder.embed(texts(1)[0]))

    refused, embedding = asyncio.run(run())
    assert isinstance(refused, Refusal)
    assert embedding.shape == (16,)
