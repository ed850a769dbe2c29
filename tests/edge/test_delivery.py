"""Every result that the queue has acknowledged reaches a real server, at least once and with its id."""

from __future__ import annotations

import json
import threading
import time

import pytest

from eagleray.edge import delivery as delivery_module
from eagleray.edge.delivery import Delivery, post_to
from eagleray.edge.queue import ResultQueue
from eagleray.workflows.errors import EaglerayError


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(delivery_module, "FIRST_WAIT_S", 0.02)
    monkeypatch.setattr(delivery_module, "LONGEST_WAIT_S", 0.2)


@pytest.fixture
def queue(tmp_path):
    return ResultQueue(tmp_path / "q.db")


def fill(queue: ResultQueue, count: int, first: int = 0) -> list[str]:
    ids = [f"id{number}" for number in range(first, first + count)]
    for id in ids:
        assert queue.put(id, json.dumps({"id": id}))
    return ids


def ids(receiver) -> list[str]:
    return [one["id"] for one in receiver.results]


def test_results_are_delivered_in_order_and_forgotten(queue, receiver):
    receiver.up()
    expected = fill(queue, 250)
    delivery = Delivery(queue, post_to(receiver.url, "secret"), lambda message: None)
    receiver.wait(250)
    delivery.end(10)
    assert ids(receiver) == expected
    assert (len(queue), delivery.delivered, delivery.error) == (0, 250, None)
    assert receiver.headers[0]["authorization"] == "Bearer secret"
    assert receiver.headers[0]["content-type"] == "application/x-ndjson"


def test_what_came_while_nobody_listened_is_delivered_once_somebody_does(queue, receiver):
    said: list[str] = []
    delivery = Delivery(queue, post_to(receiver.url, None), said.append)
    expected = fill(queue, 3)
    time.sleep(0.3)
    receiver.up()
    receiver.wait(3)
    receiver.down()
    expected += fill(queue, 3, 3)
    time.sleep(0.3)
    receiver.up()
    receiver.wait(6)
    delivery.end(10)
    assert ids(receiver) == expected
    assert [message.split(",")[0] for message in said] == ["results wait", "results are delivered again"] * 2


@pytest.mark.parametrize("status", [301, 307, 400, 403, 404, 429, 500, 503])
def test_a_refusal_loses_nothing(queue, receiver, status):
    receiver.answers = [(status, {"location": receiver.url}), (status, {})]
    receiver.up()
    expected = fill(queue, 4)
    delivery = Delivery(queue, post_to(receiver.url, None), lambda message: None)
    receiver.wait(4)
    delivery.end(10)
    assert ids(receiver) == expected
    assert receiver.sizes == [4, 4, 4]


def test_what_is_too_large_is_sent_in_parts(queue, receiver):
    receiver.answers = [(413, {}), (413, {})]
    receiver.up()
    expected = fill(queue, 80)
    delivery = Delivery(queue, post_to(receiver.url, None), lambda message: None)
    receiver.wait(80)
    delivery.end(10)
    assert ids(receiver) == expected
    assert receiver.sizes == [80, 40, 20, 60]


def test_a_lost_acknowledgement_makes_a_duplicate_with_the_same_id(queue, receiver):
    fill(queue, 2)
    lost = iter([True, False])

    def cut():
        if next(lost, False):
            raise ConnectionAbortedError

    receiver.after = cut
    receiver.up()
    delivery = Delivery(queue, post_to(receiver.url, None), lambda message: None)
    until = time.monotonic() + 20
    while len(queue) and time.monotonic() < until:
        time.sleep(0.02)
    delivery.end(10)
    assert ids(receiver) == ["id0", "id1", "id0", "id1"]


def test_the_other_side_may_ask_for_time(queue, receiver):
    receiver.answers = [(503, {"retry-after": "1"})]
    receiver.up()
    delivery_module.LONGEST_WAIT_S = 5.0
    fill(queue, 1)
    begun = time.monotonic()
    delivery = Delivery(queue, post_to(receiver.url, None), lambda message: None)
    receiver.wait(1)
    assert time.monotonic() - begun >= 1.0
    delivery.end(10)


def test_the_end_waits_for_what_can_be_delivered_and_not_for_what_can_not(queue, receiver):
    fill(queue, 150)
    begun = time.monotonic()
    Delivery(queue, post_to(receiver.url, None), lambda message: None).end(30)
    assert time.monotonic() - begun < 15
    assert len(queue) == 150
    receiver.up()
    Delivery(queue, post_to(receiver.url, None), lambda message: None).end(30)
    assert len(queue) == 0


def test_a_queue_that_can_not_be_read_is_told(queue):
    broken = threading.Event()
    queue.close()
    delivery = Delivery(queue, lambda lines: None, lambda message: None, broken.set)
    assert broken.wait(10)
    assert isinstance(delivery.error, EaglerayError)


def test_addresses_that_can_not_be_delivered_to_are_refused():
    for url in ("ftp://host/x", "results", "http:///x"):
        with pytest.raises(EaglerayError, match="no URL"):
            post_to(url, None)
    with pytest.raises(EaglerayError, match="unencrypted"):
        post_to("http://example.org/results", "token")
    post_to("https://example.org/results", "token")
    post_to("http://127.0.0.1:1/results", "token")
