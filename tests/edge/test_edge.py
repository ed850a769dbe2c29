"""`eagleray edge` as a process on a device that is killed, updated and cut off."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from edge_bundles import board, png, replace_graph, write_bundle

from eagleray.edge.queue import ResultQueue
from eagleray.edge.shelf import Pointer, Shelf
from eagleray.pipelines.bundle import bundle_digest

COUNT = 24


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "pictures").mkdir()
    return tmp_path / "pictures"


@pytest.fixture
def other(tmp_path) -> Path:
    return write_bundle(tmp_path / "other", 0.4)


def drop(folder: Path, first: int, count: int) -> None:
    for number in range(first, first + count):
        partial = folder / f".{number}"
        partial.write_bytes(png(board(number, spots=number % 3)))
        moment = 1e9 + number
        os.utime(partial, (moment, moment))
        partial.rename(folder / f"{number:04}.png")


def end(process) -> tuple[list[dict], str]:
    """What it said of pictures, and what of itself, once it was asked to end."""
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return [json.loads(line) for line in out.splitlines()], err


def finish(process) -> tuple[list[dict], str]:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return [json.loads(line) for line in out.splitlines()], err


def fails(process) -> str:
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert "Traceback" not in err
    return err


def test_each_picture_of_a_folder_is_assessed_once_over_restarts(start, bundle, folder):
    drop(folder, 0, 5)
    (folder / "0005.png").write_bytes(b"no picture")
    first, said = finish(start("run", bundle, "--source", folder, "--limit", 4))
    assert "4 assessed" in said
    second, _ = finish(start("run", bundle, "--source", folder, "--limit", 2))
    results = [*first, *second]
    assert [one["picture"] for one in results] == [f"{number:04}.png" for number in range(6)]
    assert [len(one.get("findings", ())) for one in results] == [0, 1, 2, 0, 1, 0]
    assert [one["assessable"] for one in results] == [True] * 5 + [False]
    assert results[5]["reason"] == "not-an-image"
    assert results[2]["verdict"] == "defective"
    assert {one["bundle"] for one in results} == {bundle_digest(bundle)}
    assert len({one["id"] for one in results}) == 6
    assert len({one["device"] for one in results}) == 1


def test_nothing_is_lost_when_it_is_killed_while_nobody_listens(start, bundle, folder, receiver):
    drop(folder, 0, COUNT)
    words = ("run", bundle, "--source", folder, "--deliver", receiver.url)
    for waiting in (1, 5, 12):
        process = start(*words)
        until_waiting(folder.parent / "device", waiting)
        process.kill()
        process.wait()
    receiver.up()
    receiver.after = lambda: time.sleep(0.2)  # so that it is killed before it is told
    process = start(*words)
    receiver.wait(1)
    process.kill()
    process.wait()
    process = start(*words)
    receiver.wait(COUNT)
    _, said = end(process)
    assert "0 wait" in said
    by_id = {one["id"]: one for one in receiver.results}
    assert sorted(one["picture"] for one in by_id.values()) == [f"{n:04}.png" for n in range(COUNT)]
    assert all(one == by_id[one["id"]] for one in receiver.results)  # a duplicate is the same


def test_a_running_device_takes_up_an_update_and_goes_back_without_losing_a_picture(
    start, bundle, other, folder, receiver
):
    receiver.up()
    old, new = bundle_digest(bundle), bundle_digest(other)
    assert f"bundle {old}" in start("update", bundle).communicate()[0]
    process = start("run", "--source", folder, "--deliver", receiver.url)
    drop(folder, 0, 4)
    receiver.wait(4)
    updating = start("update", other)
    count = 4
    while updating.poll() is None:
        drop(folder, count, 1)
        count += 1
        time.sleep(0.1)
    drop(folder, count, 4)
    receiver.wait(count + 4)
    assert f"bundle {old}" in start("rollback").communicate()[0]
    drop(folder, count + 4, 4)
    receiver.wait(count + 8)
    _, said = end(process)
    results = sorted(receiver.results, key=lambda one: one["picture"])
    assert [one["picture"] for one in results] == [f"{n:04}.png" for n in range(count + 8)]
    used = [one["bundle"] for one in results]
    assert used[:4] == [old] * 4
    assert used[count : count + 4] == [new] * 4
    assert used[-4:] == [old] * 4
    assert [len(one["findings"]) for one in results] == [n % 3 for n in range(count + 8)]
    assert said.count("assesses from now on") == 3


def test_a_bundle_that_does_not_open_is_gone_back_from(start, bundle, folder, receiver, tmp_path):
    receiver.up()
    shelf, old = Shelf(tmp_path / "device"), bundle_digest(bundle)
    start("update", bundle).communicate()
    bad = shutil.copytree(bundle, tmp_path / "bad")
    replace_graph(bad, 0.1)
    refused = fails(start("update", bad))
    assert "something else of its sample" in refused
    process = start("run", "--source", folder, "--deliver", receiver.url)
    drop(folder, 0, 1)
    receiver.wait(1)
    with shelf.locked():  # as if its trial had gone well, on another machine
        shutil.copytree(bad, shelf.path(bundle_digest(bad)))
        shelf.point(Pointer(current=bundle_digest(bad), before=old))
    drop(folder, 1, 3)
    receiver.wait(4)
    _, said = end(process)
    assert [one["bundle"] for one in receiver.results] == [old] * 4
    assert "going back" in said
    pointer = shelf.pointer()
    assert pointer is not None
    assert pointer.current == old


def test_started_on_a_bundle_that_does_not_open_it_uses_the_one_before(start, bundle, folder, tmp_path):
    shelf, old = Shelf(tmp_path / "device"), bundle_digest(bundle)
    start("update", bundle).communicate()
    with shelf.locked():
        (shelf.path("f" * 64)).mkdir()
        shelf.point(Pointer(current="f" * 64, before=old))
    drop(folder, 0, 1)
    results, said = finish(start("run", "--source", folder, "--limit", 1))
    assert results[0]["bundle"] == old
    assert "going back" in said


def test_only_signed_bundles_run_where_a_key_is_trusted(start, bundle, folder, tmp_path):
    drop(folder, 0, 1)
    assert start("keys", tmp_path / "line").wait() == 0
    signed = shutil.copytree(bundle, tmp_path / "signed")
    trust = ("--trust", tmp_path / "line.pub")
    assert "not signed" in fails(start("run", signed, "--source", folder, *trust))
    assert start("sign", signed, "--key", tmp_path / "line.key").wait() == 0
    results, _ = finish(start("run", signed, "--source", folder, "--limit", 1, *trust))
    assert results[0]["verdict"] == "normal"
    (signed / "added").write_text("")
    assert "added is no part of the bundle" in fails(start("run", signed, "--source", folder, *trust))
    assert "added is no part" in fails(start("sign", signed, "--key", tmp_path / "line.key"))


def test_what_is_missing_or_in_the_way_is_told_in_one_message(start, bundle, folder, tmp_path):
    assert "no bundle yet" in fails(start("run", "--source", folder))
    assert "no such folder" in fails(start("run", bundle, "--source", tmp_path / "none"))
    assert "must be signed" in fails(start("update", "http://127.0.0.1:1/bundle"))
    assert "no bundle to go back to" in fails(start("rollback"))
    assert "no bundle.json" in fails(start("update", folder))
    running = start("run", bundle, "--source", folder, "--deliver", "http://127.0.0.1:1")
    drop(folder, 0, 1)
    until_waiting(tmp_path / "device", 1)
    assert "another `eagleray edge run`" in fails(start("run", bundle, "--source", folder))
    end(running)


def until_waiting(device: Path, count: int) -> None:
    """Until so many results wait."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with contextlib.suppress(sqlite3.Error), closing(sqlite3.connect(device / "results.db")) as database:
            if database.execute("SELECT count(*) FROM results").fetchone()[0] >= count:
                return
        time.sleep(0.005)
    raise AssertionError(f"less than {count} results wait")


def memory_mib(process) -> float:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def test_memory_does_not_grow_with_pictures(start, bundle, folder, receiver):
    receiver.up()
    process = start("run", bundle, "--source", folder, "--deliver", receiver.url)
    content = png(board(size=128))
    grown = []
    for count in (100, 400):
        for number in range(count - 300 if count > 300 else 0, count):
            (folder / f"{number}.png").write_bytes(content)
        receiver.wait(count, 120)
        grown.append(memory_mib(process))
    end(process)
    assert grown[1] - grown[0] < 8


def test_a_full_queue_makes_a_folder_wait(start, bundle, folder, receiver):
    drop(folder, 0, 6)
    device = Path(folder.parent / "device")
    queue = ResultQueue(device / "results.db")
    queue.put("old", json.dumps({"id": "old", "fill": "x" * ((1 << 20) - 2500)}))
    queue.close()
    process = start("run", bundle, "--source", folder, "--deliver", receiver.url, "--queue-mib", 1)
    until_waiting(device, 3)
    time.sleep(2)
    assert len(ResultQueue(device / "results.db")) < 7
    receiver.up()
    receiver.wait(7)
    end(process)
    assert receiver.results[0]["id"] == "old"
