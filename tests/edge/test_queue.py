"""What the queue has acknowledged is there, whatever happens."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from itertools import pairwise

import pytest

from eagleray.edge import queue as queue_module
from eagleray.edge.queue import ResultQueue, Seen
from eagleray.workflows.errors import EaglerayError

FILL = """
import sys
from pathlib import Path
from eagleray.edge.queue import ResultQueue, Seen
queue = ResultQueue(Path(sys.argv[1]))
for number in range(10**9):
    assert queue.put(f"id{number}", f"line{number}", Seen(f"file{number}", "v"))
    sys.stdout.write(f"{number}\\n")  # in one call, whatever buffers there are
    sys.stdout.flush()
"""


def lines(queue: ResultQueue) -> list[str]:
    return [one.line for one in queue.oldest(10**6)]


def test_results_come_out_as_they_went_in_and_each_once(tmp_path):
    queue = ResultQueue(tmp_path / "q.db")
    for number in range(5):
        assert queue.put(f"id{number}", f"line{number}")
    assert queue.put("id3", "again")
    assert lines(queue) == [f"line{number}" for number in range(5)]
    queue.remove(queue.oldest(2))
    assert (lines(queue), len(queue)) == (["line2", "line3", "line4"], 3)
    again = ResultQueue(tmp_path / "q.db")
    assert (lines(again), len(again), again.device) == (lines(queue), 3, queue.device)


def test_a_full_queue_takes_nothing_and_loses_nothing(tmp_path):
    queue = ResultQueue(tmp_path / "q.db", most_bytes=25)
    assert queue.put("a", "x" * 10)
    assert queue.put("b", "ü" * 5)
    assert not queue.put("c", "x" * 6, Seen("c", "1"))
    assert not queue.is_done(Seen("c", "1"))
    assert lines(queue) == ["x" * 10, "ü" * 5]
    queue.remove(queue.oldest(1))
    assert queue.put("c", "x" * 6, Seen("c", "1"))
    assert not ResultQueue(tmp_path / "q.db", most_bytes=20).put("d", "x" * 10)


def test_a_full_disk_is_a_full_queue(tmp_path):
    queue = ResultQueue(tmp_path / "q.db")
    queue._database.execute("PRAGMA max_page_count=20")
    count = next(number for number in range(1000) if not queue.put(f"id{number}", "x" * 1000))
    assert 0 < count < 100
    assert len(queue) == count == len(lines(queue))
    queue.remove(queue.oldest(count))
    assert queue.put("more", "x")


def test_a_file_is_done_as_it_was(tmp_path):
    queue = ResultQueue(tmp_path / "q.db")
    queue.put("a", "line", Seen("one.png", "10-1"))
    queue.remove(queue.oldest(1))
    again = ResultQueue(tmp_path / "q.db")
    assert again.is_done(Seen("one.png", "10-1"))
    assert not again.is_done(Seen("one.png", "11-2"))
    assert not again.is_done(Seen("two.png", "10-1"))


def test_only_many_files_that_are_gone_are_forgotten_the_oldest_first(tmp_path, monkeypatch):
    monkeypatch.setattr(queue_module, "MOST_FILES", 3)
    queue = ResultQueue(tmp_path / "q.db")
    for number in range(6):
        queue.put(f"id{number}", "line", Seen(f"f{number}", "v"))
    queue.forget({"f0", "f1", "f2"})
    assert all(queue.is_done(Seen(f"f{number}", "v")) for number in range(6))
    queue.forget({"f0"})
    done = [queue.is_done(Seen(f"f{number}", "v")) for number in range(6)]
    assert done == [True, False, False, False, True, True]


@pytest.mark.parametrize("after", [1, 20])
def test_what_was_acknowledged_before_a_kill_is_there(tmp_path, after):
    path = tmp_path / "q.db"
    process = subprocess.Popen([sys.executable, "-c", FILL, str(path)], stdout=subprocess.PIPE, text=True)
    acknowledged = [int(process.stdout.readline()) for _ in range(after)]
    process.send_signal(signal.SIGKILL)
    acknowledged += [int(line) for line in process.communicate()[0].splitlines()]
    queue = ResultQueue(path)
    found = lines(queue)
    assert found == [f"line{number}" for number in range(len(found))]  # nothing torn, nothing between
    assert len(acknowledged) <= len(found) <= len(acknowledged) + 1  # the last may not have been told
    assert all(queue.is_done(Seen(f"file{number}", "v")) for number in acknowledged)


def test_a_torn_write_takes_away_only_what_was_not_acknowledged(tmp_path):
    queue = ResultQueue(tmp_path / "q.db")
    log = tmp_path / "q.db-wal"
    ends = []
    for number in range(8):
        assert queue.put(f"id{number}", f"line{number} " + "x" * 3000, Seen(f"file{number}", "v"))
        ends.append(log.stat().st_size)
    whole = log.read_bytes() + bytes(500)
    for number, (end, after) in enumerate(zip(ends, [*ends[1:], ends[-1] + 500], strict=True)):
        for cut in {end, end + 1, (end + after) // 2, after - 1}:
            torn = bytearray(whole[:cut])
            for place in range(end, cut, 97):  # and what was written of it isn't what was meant
                torn[place] ^= 0xFF
            folder = tmp_path / f"{number}-{cut}"
            folder.mkdir()
            shutil.copy(tmp_path / "q.db", folder / "q.db")
            (folder / "q.db-wal").write_bytes(torn)
            found = ResultQueue(folder / "q.db")
            assert [line.split()[0] for line in lines(found)] == [f"line{one}" for one in range(number + 1)]
            assert found.is_done(Seen(f"file{number}", "v"))
            assert not found.is_done(Seen(f"file{number + 1}", "v"))
            assert found.put("next", "line")
            found.close()


def test_each_acknowledgement_waits_for_the_disk(tmp_path):
    """Looks at calls to the system, since a kill doesn't empty the system's own memory."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    path = tmp_path / "trace"
    code = FILL.replace("10**9", "10")
    subprocess.run(
        [
            *("strace", "-f", "-e", "trace=fsync,fdatasync,write", "-o", path),
            *(sys.executable, "-c", code, str(tmp_path / "q.db")),
        ],
        check=True,
        capture_output=True,
    )
    calls = [line for line in path.read_text().splitlines() if "sync(" in line or "write(1," in line]
    told = [place for place, line in enumerate(calls) if "write(1," in line]
    assert len(told) == 10
    assert told[0] > 0
    assert all(after - before > 1 for before, after in pairwise(told))


def test_syncs_are_on(tmp_path):
    queue = ResultQueue(tmp_path / "q.db")
    assert queue._one("PRAGMA synchronous") == (2,)  # FULL
    assert queue._one("PRAGMA journal_mode") == ("wal",)


def test_a_file_that_is_no_queue_is_told(tmp_path):
    path = tmp_path / "q.db"
    path.write_bytes(b"no database at all, but long enough to be looked at" * 100)
    with pytest.raises(EaglerayError, match="queue of results") as error:
        ResultQueue(path)
    assert error.value.where == str(path)
