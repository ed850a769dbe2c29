"""The laptop's own cluster, with real heads.

Drivers are processes of their own, since Ray reads the token once in a process.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from eagleray.cluster import local
from eagleray.cluster.local import LocalCluster
from eagleray.workflows.errors import EaglerayError

RAY_POINTER = Path("/tmp/ray/ray_current_cluster")
DRIVER = """
import json, os, sys, logging, ray
context = ray.init(address=sys.argv[1] or None, log_to_driver=False, logging_level=logging.ERROR)
task = ray.remote(lambda: os.getpid()).options(num_cpus=2)
print(json.dumps({"address": context.address_info["gcs_address"], "worker": ray.get(task.remote())}))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home whose cluster is shared by the tests of this module; each leaves one running or none."""
    home = tmp_path_factory.mktemp("home")
    yield home
    local.stop(home)


@pytest.fixture
def cluster(home: Path) -> LocalCluster:
    return local.running(home) or local.start(home, 2)


def drive(address: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", DRIVER, address]
    return subprocess.run(
        command, env={**clean, **environment}, capture_output=True, text=True, timeout=120, check=False
    )


def quiet(_: str) -> None:
    pass


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 20
    while any(local._is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_driver_with_the_homes_token_runs_tasks(cluster: LocalCluster, home: Path) -> None:
    done = drive(cluster.address, local.client_environment(home))
    assert done.returncode == 0, done.stderr
    port = cluster.address.rpartition(":")[2]
    assert json.loads(done.stdout)["address"].endswith(f":{port}")


@pytest.mark.parametrize(
    ("token", "code"), [(None, "UNAUTHENTICATED"), ("0" * 64, "UNAUTHENTICATED"), ("", "OK")]
)
def test_a_driver_without_the_token_is_refused(
    cluster: LocalCluster, home: Path, token: str | None, code: str
) -> None:
    given = (home / "ray-token").read_text() if token == "" else token
    metadata = [("authorization", f"Bearer {given}")] if given else []
    with grpc.insecure_channel(cluster.address) as channel:  # a real driver tries for 20 s
        call = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo")
        try:
            call(b"", metadata=metadata, timeout=10)
            answered = "OK"
        except grpc.RpcError as error:
            answered = error.code().name
    assert answered == code


def test_the_dashboard_asks_for_the_token(cluster: LocalCluster) -> None:
    import httpx

    answer = httpx.get(f"{cluster.dashboard}/api/jobs/", trust_env=False)
    assert answer.status_code in (401, 403)


def test_the_token_is_for_its_owner_alone(tmp_path: Path) -> None:
    os.umask(old := os.umask(0))
    try:
        path = Path(local.client_environment(tmp_path)["RAY_AUTH_TOKEN_PATH"])
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_text()
    assert len(before) >= 32
    local.client_environment(tmp_path)
    assert path.read_text() == before


def test_rays_folder_is_closed_to_others_and_its_sockets_fit(cluster: LocalCluster) -> None:
    assert stat.S_IMODE(Path(cluster.folder).stat().st_mode) == 0o700
    sockets = [str(path) for path in Path(cluster.folder).rglob("*") if path.is_socket()]
    assert sockets
    assert max(map(len, sockets)) < 107


def test_another_programs_ray_init_does_not_find_it(cluster: LocalCluster) -> None:
    port = cluster.address.rpartition(":")[2]
    assert not RAY_POINTER.exists() or not RAY_POINTER.read_text().strip().endswith(f":{port}")
    assert (Path(cluster.folder) / "ray" / "ray_current_cluster").is_file()


def test_stopping_ends_every_process_and_nothing_of_another_cluster(
    cluster: LocalCluster, home: Path, tmp_path: Path
) -> None:
    other = local.start(tmp_path, 2)
    try:
        assert drive(cluster.address, local.client_environment(home)).returncode == 0
        ours, theirs = local._in_session(cluster.pid), local._in_session(other.pid)
        assert len(ours) > 5
        assert not set(ours) & set(theirs)
        assert local.stop(home)
        assert [pid for pid in ours if local._is_alive(pid)] == []
        assert not Path(cluster.folder).exists()
        assert not (home / "cluster.json").exists()
        assert local.running(home) is None
        assert local.running(tmp_path) == other
        assert [pid for pid in theirs if not local._is_alive(pid)] == []
        assert not local.stop(home)
        local.start(home, 2)  # at once, while the old one's ports may linger
    finally:
        local.stop(tmp_path)


def test_a_killed_head_is_noticed_and_replaced_and_leaves_nothing(cluster: LocalCluster, home: Path) -> None:
    left = local._in_session(cluster.pid)
    os.kill(cluster.pid, signal.SIGKILL)
    wait_until_gone([cluster.pid])
    assert local.running(home) is None
    with local.use(home, 2, quiet, lambda _: True) as replaced:
        assert replaced.pid != cluster.pid
        assert [pid for pid in left if local._is_alive(pid)] == []
        assert not Path(cluster.folder).exists()
    # leave a cluster that doesn't serve
    local._write(home, replaced)


def test_a_head_whose_folder_was_cleaned_up_is_replaced(cluster: LocalCluster, home: Path) -> None:
    shutil.rmtree(cluster.folder)
    assert local.running(home) is None
    assert local.stop(home)
    assert not local._is_alive(cluster.pid)


def test_the_last_user_stops_it(cluster: LocalCluster, home: Path) -> None:
    with local.use(home, 2, quiet, lambda _: False) as first:
        with local.use(home, 1, quiet, lambda _: False) as second:
            assert second.pid == first.pid == cluster.pid
            with (
                pytest.raises(EaglerayError, match="another command uses it"),
                local.use(home, 99, quiet, lambda _: False),
            ):
                pass
            with pytest.raises(EaglerayError, match="goes on uses the cluster"):
                local.shut_down(home)
        assert local.running(home) == first
    assert local.running(home) is None


def test_what_serves_goes_on_and_is_not_replaced_by_a_larger_one(home: Path) -> None:
    with local.use(home, 2, quiet, lambda _: True) as first:
        pass
    running = local.running(home)
    assert running == replace(first, serves=True)
    with (
        pytest.raises(EaglerayError, match="serves something") as error,
        local.use(home, 3, quiet, lambda cluster: cluster.serves),
    ):
        pass
    assert "eagleray down" in str(error.value)
    assert local.running(home) == running
    assert local.shut_down(home)
    assert not local.shut_down(home)


def test_of_two_who_start_it_at_once_one_does(home: Path) -> None:
    met = threading.Barrier(2)
    found: list[LocalCluster] = []

    def user() -> None:
        with local.use(home, 2, quiet, lambda _: False) as cluster:
            found.append(cluster)
            met.wait(60)

    threads = [threading.Thread(target=user) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({cluster.pid for cluster in found}) == 1
    assert len(found) == 2
    assert local.running(home) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"pid": 1}', '{"pid": "x", "folder": 3}', '{"unknown": 1}']
)
def test_a_damaged_record_is_no_cluster(tmp_path: Path, text: str) -> None:
    (tmp_path / "cluster.json").write_text(text)
    assert local.running(tmp_path) is None
    assert not local.stop(tmp_path)


def test_a_number_that_another_program_has_by_now_is_left_alone(tmp_path: Path) -> None:
    program = subprocess.Popen(["sleep", "60"], start_new_session=True)
    keepsake = tmp_path / "keepsake"
    keepsake.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        stale = LocalCluster(program.pid, str(keepsake), address, "http://127.0.0.1:1", 2)
        (tmp_path / "cluster.json").write_text(json.dumps(asdict(stale)))
        try:
            assert local.running(tmp_path) is None
            assert not local.stop(tmp_path)
            assert program.poll() is None
            assert keepsake.exists()  # a record can't have any folder removed
            assert not (tmp_path / "cluster.json").exists()
        finally:
            program.kill()
            program.wait()


def test_a_head_that_does_not_start_says_why_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def number(*wanted: int) -> list[int]:
        return [one or 1 for one in wanted]  # Ray refuses ports below 1024

    monkeypatch.setattr(local, "_free_ports", number)
    with pytest.raises(EaglerayError, match="did not start") as error:
        local.start(tmp_path, 2)
    assert "port" in error.value.cause
    assert error.value.where == str(tmp_path / "ray.log")
    assert not (tmp_path / "cluster.json").exists()


def test_a_start_that_was_interrupted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heads: list[Any] = []
    popen = subprocess.Popen

    def start(*args: Any, **kwargs: Any) -> Any:
        heads.append(popen(*args, **kwargs))
        return heads[-1]

    def interrupt(*_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(local, "_open", interrupt)
    with pytest.raises(KeyboardInterrupt):
        local.start(tmp_path, 2)
    assert not local._is_alive(heads[0].pid)
    assert not (tmp_path / "cluster.json").exists()


def test_the_lock_is_not_inherited_by_the_cluster(cluster: LocalCluster, home: Path) -> None:
    with (home / "cluster.lock").open("w") as lock:  # else no one would ever be alone again
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
