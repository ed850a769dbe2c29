"""The decoder replica: side by side answers are as alone, and whoever leaves leaves nothing."""

import asyncio

import pytest

from eagleray.actors.serving.answering import Answered, Decoder
from eagleray.actors.serving.decoding import Sampling

pytestmark = pytest.mark.usefixtures("ray_cluster")
QUESTIONS = ("What colour is the frog?", "Where is it?", "How many drums are there?", "Say it.", "Who is it?")
LONGEST = Sampling(100)


@pytest.fixture
def decoder(loaded_bundle):
    return Decoder(lambda: loaded_bundle, 2)


@pytest.fixture(scope="module")
def asked(loaded_bundle):
    rows = loaded_bundle.encode("text", [loaded_bundle.prepare_text(question) for question in QUESTIONS])
    return [({"text": row}, question) for row, question in zip(rows, QUESTIONS, strict=True)]


def test_more_than_fit_in_a_batch_are_answered_as_each_alone(decoder, asked):
    async def run():
        alone = [await decoder.answer(*one, LONGEST) for one in asked]
        together = await asyncio.gather(*(decoder.answer(*one, LONGEST) for one in asked))
        return alone, together

    alone, together = asyncio.run(run())
    assert [one.text for one in together] == [one.text for one in alone]
    assert all(one.weights["text"] == pytest.approx(1) for one in together)


def test_a_stream_ends_with_the_whole(decoder, asked):
    async def run():
        return [told async for told in decoder.stream(*asked[0], LONGEST)]

    *pieces, whole = asyncio.run(run())
    assert isinstance(whole, Answered)
    assert whole.pieces == tuple(pieces)
    assert [piece.end is None for piece in pieces] == [True] * (len(pieces) - 1) + [False]


def test_whoever_leaves_while_waiting_or_in_the_batch_leaves_nothing(decoder, asked):
    async def run():
        expected = (await decoder.answer(*asked[0], LONGEST)).text
        tasks = [asyncio.create_task(decoder.answer(*one, LONGEST)) for one in asked * 4]
        await asyncio.sleep(0.01)
        for task in tasks[1:]:
            task.cancel()
        found = (await tasks[0]).text
        await asyncio.gather(*tasks[1:], return_exceptions=True)
        async with asyncio.timeout(10):
            while decoder._running is not None and not decoder._running.done():
                await asyncio.sleep(0.01)
        again = (await decoder.answer(*asked[0], LONGEST)).text
        return expected, found, again

    expected, found, again = asyncio.run(run())
    assert found == again == expected
    assert not decoder._waiting
    assert not decoder._going
    assert not decoder._batch.answers


def test_a_failure_is_told_to_whoever_waits_and_the_next_are_answered(decoder, asked, monkeypatch):
    async def run():
        with monkeypatch.context() as patch:
            patch.setattr(decoder._bundle, "run", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                await decoder.answer(*asked[0], LONGEST)
        return await decoder.answer(*asked[0], LONGEST)

    assert asyncio.run(run()).pieces


def test_it_tells_what_it_could_do(decoder, asked):
    async def run():
        await asyncio.gather(*(decoder.answer(*one, LONGEST) for one in asked))
        return decoder.record_autoscaling_stats()

    told = asyncio.run(run())
    assert told["arrivals_per_s"] == len(asked) / 2.0
    assert told["capacity_per_s"] > 0
