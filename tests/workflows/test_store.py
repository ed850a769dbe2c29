from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow.fs import FileSelector, FileSystem, LocalFileSystem
from workflow_harness import CHAIN, KEY, SECRET, Home, parse

from eagleray.workflows.artifacts import Artifact, Checkpoint, Corpus
from eagleray.workflows.errors import EaglerayError
from eagleray.workflows.store import ArtifactStore, Record, describe, make_record

FILES: dict[str, bytes] = {"a.txt": b"hello", "sub/b ü.bin": b"\0" * 2000, "sub/deep/empty": b""}
TREES = st.dictionaries(
    st.lists(st.text("abé .", min_size=1, max_size=4), min_size=1, max_size=3).map("/".join),
    st.binary(max_size=40),
    max_size=4,
)


def fill(folder: Path, files: Mapping[str, bytes] = FILES) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def content_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def described(folder: Path, kind: type[Artifact] = Corpus, **changes: Any) -> Record:
    values: dict[str, Any] = {"fingerprint": "f1", "stage": "corpus", "kind": "write", "run_id": "r1"}
    record = make_record(kind, folder, **values, spec={"text": "a"}, inputs={}, facts={"rows": 3})
    return record.model_copy(update=changes)


def within(store: ArtifactStore, path: str) -> tuple[FileSystem, str]:
    """The filesystem of a store, and a path in it."""
    if "://" not in store.uri:
        return LocalFileSystem(), f"{store.uri}/{path}"
    filesystem, root = FileSystem.from_uri(store.uri)
    return filesystem, f"{root}/{path}"


def put(store: ArtifactStore, path: str, content: bytes) -> None:
    filesystem, whole = within(store, path)
    filesystem.create_dir(whole.rpartition("/")[0], recursive=True)
    with filesystem.open_output_stream(whole) as stream:
        stream.write(content)


def remove(store: ArtifactStore, path: str) -> None:
    filesystem, whole = within(store, path)
    filesystem.delete_file(whole)


# ── what is put is what is opened ──────────────────────────────────────────────────────────────────


def test_what_was_put_is_found_and_opened_as_it_was(store: ArtifactStore, tmp_path: Path) -> None:
    folder = fill(tmp_path / "out")
    record = store.commit(described(folder, Checkpoint), folder)
    assert store.find("f1") == record
    opened = store.open(record)
    assert type(opened) is Checkpoint
    assert (opened.digest, opened.fingerprint, opened.facts) == (record.digest, "f1", {"rows": 3})
    assert content_of(opened.path) == FILES
    assert record.size_bytes == 2005


def test_an_artifact_without_files_is_one_too(store: ArtifactStore, tmp_path: Path) -> None:
    folder = fill(tmp_path / "out", {})
    opened = store.open(store.commit(described(folder), folder))
    assert opened.path.is_dir()
    assert content_of(opened.path) == {}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(TREES)
def test_any_tree_of_files_comes_back_as_it_was(tmp_path_factory: Any, tree: dict[str, bytes]) -> None:
    folder = tmp_path_factory.mktemp("tree")
    try:
        fill(folder / "out", tree)
    except OSError:  # `a` and `a/b`, or the name `..`
        return
    store = ArtifactStore(str(folder / "store"), folder / "cache")
    opened = store.open(store.commit(described(folder / "out"), folder / "out"))
    assert content_of(opened.path) == content_of(folder / "out")
    assert describe("Corpus", opened.path)[0] == opened.digest


@given(st.permutations(sorted(FILES)), st.integers(0, 2**31))
def test_the_digest_is_of_names_and_content_alone(
    tmp_path_factory: Any, order: list[str], modified_s: int
) -> None:
    one, other = (fill(tmp_path_factory.mktemp("tree") / name, {n: FILES[n] for n in order}) for name in "ab")
    for name in order:
        os.utime(other / name, (modified_s, modified_s))
    assert describe("Corpus", one) == describe("Corpus", other)


def test_the_digest_differs_with_any_name_content_or_type(tmp_path: Path) -> None:
    variants = [FILES, {**FILES, "a.txt": b"hellO"}, {"b.txt": b"hello"}, {**FILES, "c": b""}, {}]
    digests = [describe("Corpus", fill(tmp_path / str(i), files))[0] for i, files in enumerate(variants)]
    digests.append(describe("Report", tmp_path / "0")[0])
    assert len(set(digests)) == len(digests)


def test_an_artifact_of_an_extensions_own_type_opens_as_that(tmp_path: Path) -> None:
    class Atlas(Corpus):
        pass

    store = ArtifactStore(str(tmp_path / "store"), tmp_path / "cache")
    folder = fill(tmp_path / "out")
    assert type(store.open(store.commit(described(folder, Atlas), folder))) is Atlas


def test_records_are_listed_newest_first(store: ArtifactStore, tmp_path: Path) -> None:
    assert store.list() == []
    folder = fill(tmp_path / "out")
    for place, name in enumerate(["f2", "f1", "f3"]):
        store.commit(described(folder, fingerprint=name, created_s=float(place)), folder)
    assert [record.fingerprint for record in store.list()] == ["f3", "f1", "f2"]


def test_a_folder_given_by_a_relative_path_stays_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = ArtifactStore("store", tmp_path / "cache")
    monkeypatch.chdir("/")
    assert store.uri == str(tmp_path / "store")


# ── a record is written last and once ──────────────────────────────────────────────────────────────


def test_content_without_a_record_is_no_artifact(store: ArtifactStore, tmp_path: Path) -> None:
    record = described(fill(tmp_path / "out"))
    for name, content in FILES.items():
        put(store, f"content/{record.digest}/{name}", content)
    put(store, "records/f1.json.half", b"{")
    assert store.find("f1") is None
    assert store.list() == []


def test_a_record_is_never_written_over(store: ArtifactStore, tmp_path: Path) -> None:
    first, second = fill(tmp_path / "1"), fill(tmp_path / "2", {"other": b"other"})
    record = store.commit(described(first), first)
    assert store.commit(described(second, run_id="r2"), second) == record
    assert store.find("f1") == record
    assert content_of(store.open(record).path) == FILES


def test_many_that_put_the_same_at_once_all_have_one_record(store: ArtifactStore, tmp_path: Path) -> None:
    folder = fill(tmp_path / "out")
    barrier = threading.Barrier(6)
    results: list[Any] = []

    def work(number: int) -> None:
        mine = ArtifactStore(store.uri, tmp_path / "cache")
        barrier.wait()
        try:
            record = mine.commit(described(folder, run_id=f"r{number}"), folder)
            results.append(content_of(mine.open(record).path))
        except Exception as error:
            results.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [FILES] * 6
    assert len(store.list()) == 1
    assert [path.name for path in (tmp_path / "cache").glob("*.*")] == []


def test_content_that_arrived_by_half_is_mended_by_the_next_that_puts_it(
    store: ArtifactStore, tmp_path: Path
) -> None:
    folder = fill(tmp_path / "out")
    record = described(folder)
    put(store, f"content/{record.digest}/a.txt", b"he")
    assert content_of(store.open(store.commit(record, folder)).path) == FILES


def test_two_fingerprints_may_lead_to_the_same_content(store: ArtifactStore, tmp_path: Path) -> None:
    folder = fill(tmp_path / "out")
    one, other = (store.commit(described(folder, fingerprint=name), folder) for name in ("f1", "f2"))
    assert one.digest == other.digest
    filesystem, content = within(store, "content")
    assert len(filesystem.get_file_info(FileSelector(content))) == 1


def test_content_that_is_there_is_not_put_again(store: ArtifactStore, tmp_path: Path) -> None:
    folder = fill(tmp_path / "out")
    record = store.commit(described(folder), folder)
    (folder / "a.txt").unlink()  # what isn't read need not be there
    again = store.commit(record.model_copy(update={"fingerprint": "f2"}), folder)
    assert content_of(store.open(again).path) == FILES


# ── what was changed behind the store's back ───────────────────────────────────────────────────────


def test_content_that_is_gone_or_cut_is_told_with_what_to_do(store: ArtifactStore, tmp_path: Path) -> None:
    folder = fill(tmp_path / "out")
    record = store.commit(described(folder), folder)
    put(store, f"content/{record.digest}/a.txt", b"hel")
    with pytest.raises(EaglerayError, match="no longer there as its record says"):
        store.open(record)
    remove(store, f"content/{record.digest}/a.txt")
    with pytest.raises(EaglerayError, match=f"remove content/{record.digest} and records/f1.json"):
        store.open(record)


def test_changed_content_of_a_remote_store_is_noticed(s3_uri: Callable[[], str], tmp_path: Path) -> None:
    store, folder = ArtifactStore(s3_uri(), tmp_path / "cache"), fill(tmp_path / "out")
    record = store.commit(described(folder), folder)
    put(store, f"content/{record.digest}/a.txt", b"hellO")
    with pytest.raises(EaglerayError, match="no longer there as its record says"):
        store.open(record)
    assert list((tmp_path / "cache").iterdir()) == []


def test_remote_content_is_fetched_once(s3_uri: Callable[[], str], tmp_path: Path) -> None:
    store, folder = ArtifactStore(s3_uri(), tmp_path / "cache"), fill(tmp_path / "out")
    record = store.commit(described(folder), folder)
    first = store.open(record)
    remove(store, f"content/{record.digest}/a.txt")
    assert store.open(record) == first


def test_a_record_that_can_not_be_read_is_told_by_name(store: ArtifactStore) -> None:
    put(store, "records/f1.json", b'{"type": "Corp')
    for look in (lambda: store.find("f1"), store.list):
        with pytest.raises(EaglerayError, match="not a record that can be read") as caught:
            look()
        assert caught.value.where.endswith("records/f1.json")


# ── places that can't be used ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://{KEY}:{SECRET}/x@bucket/x",
        f"s3://{KEY}:{SECRET}@bucket/x?bad={SECRET}",
        f"nothing://{KEY}:{SECRET}@host/x",
        "s3://",
        "://",
    ],
)
def test_a_place_that_is_none_is_refused_without_its_keys(uri: str, tmp_path: Path) -> None:
    with pytest.raises(EaglerayError, match="no artifact store can be opened there") as caught:
        ArtifactStore(uri, tmp_path).find("f1")
    assert SECRET not in str(caught.value)
    assert KEY not in str(caught.value)


def test_a_bucket_that_is_not_there_is_told_without_keys(s3_uri: Callable[[], str], tmp_path: Path) -> None:
    folder = fill(tmp_path / "out")
    store = ArtifactStore(s3_uri().replace("@artifacts/", "@nothing/"), tmp_path / "cache")
    with pytest.raises(EaglerayError, match="Bucket 'nothing' not found") as caught:
        store.commit(described(folder), folder)
    assert caught.value.retryable
    assert SECRET not in str(caught.value)
    assert store.shown.startswith("s3://nothing/")


def test_the_keys_of_a_store_stand_in_no_representation(s3_uri: Callable[[], str], tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    home.store = ArtifactStore(s3_uri(), tmp_path / "cache")
    task = home.task(home.plan(parse(CHAIN))["corpus"], {}, "r1", {})
    shown = repr((task, home.store, home.store.shown))
    assert SECRET not in shown
    assert KEY not in shown


def test_a_whole_run_works_on_object_storage(s3_uri: Callable[[], str], tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    home.store = ArtifactStore(s3_uri(), tmp_path / "artifacts")
    assert home.carry_out(parse(CHAIN))[1] == "succeeded"
    assert {stage.decision for stage in home.plan(parse(CHAIN)).stages} == {"HIT"}


def test_a_place_that_can_not_be_written_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", Path("/proc/nothing")):
        store = ArtifactStore(str(place), tmp_path / "cache")
        with pytest.raises(EaglerayError) as caught:
            store.prepare()
        assert str(place) in str(caught.value)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_of_another_is_refused_with_its_name(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"), tmp_path / "cache")
    store.prepare()
    (tmp_path / "store" / "records").chmod(0o500)
    with pytest.raises(EaglerayError, match="permission denied"):
        store.prepare()


FULL = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_store import described, fill
from eagleray.workflows.errors import EaglerayError
from eagleray.workflows.store import ArtifactStore

home = Path(sys.argv[2])
folder = fill(home / "out", {"small": b"x", "big": b"x" * (1 << 20)})
store = ArtifactStore(sys.argv[3], home / "cache")
record = described(folder)
for limit in (1 << 18, resource.RLIM_INFINITY):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        store.commit(record, folder)
    except EaglerayError as error:
        print("REFUSED", error.cause, [p.name for p in (Path(store.uri) / "content").iterdir()])
        assert store.find("f1") is None
store.open(record)
"""


def run_full(tmp_path: Path, place: Path) -> str:
    tests = Path(__file__).parent
    path = os.pathsep.join([str(tests), str(tests / "packages")])
    command = [sys.executable, "-c", FULL, str(tests), str(tmp_path), str(place)]
    ended = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_a_full_disk_is_one_clear_error_and_leaves_nothing_behind(tmp_path: Path) -> None:
    # A limit on the size of a file stands for the disk: a write beyond it fails as on a full one.
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    told = run_full(tmp_path, tmp_path / "store")
    assert told == "REFUSED the disk is full (1 MiB were to be written) []\n"


def test_a_small_disk_that_is_full_is_told_the_same_way(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small disk can't be mounted here")
    try:
        folder = fill(tmp_path / "out", {"small": b"x", "big": b"x" * (1 << 20)})
        store = ArtifactStore(str(disk / "store"), tmp_path / "cache")
        with pytest.raises(EaglerayError, match=r"the disk is full \(1 MiB were to be written\)") as caught:
            store.commit(described(folder), folder)
        assert caught.value.where == str(disk / "store")
        assert list((disk / "store" / "content").iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)
