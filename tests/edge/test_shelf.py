"""Updates: the old bundle or the new one, at any moment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from edge_bundles import replace_graph, write_bundle
from files_server import files_server

from eagleray.edge.origin import FolderOrigin, WebOrigin, open_origin
from eagleray.edge.shelf import Pointer, Shelf
from eagleray.edge.signing import Trust, make_keys, sign
from eagleray.edge.trial import Options, open_tried, try_apart
from eagleray.edge.updating import update
from eagleray.pipelines.bundle import bundle_digest
from eagleray.workflows.errors import EaglerayError

OPTIONS = Options()
STEPS = 9
"""Of an update: four files, the folder, its name, the pointer twice, and sweeping."""
UPDATE = """
import os, signal, sys
from pathlib import Path
from eagleray.edge.origin import FolderOrigin
from eagleray.edge.shelf import Shelf
from eagleray.edge.trial import Options
from eagleray.edge.updating import update

steps = []
def reached(step):
    steps.append(step)
    if len(steps) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

def trial(folder, options):
    from eagleray.edge.trial import open_tried
    open_tried(folder, options)

update(Shelf(Path(sys.argv[1]), reached), FolderOrigin(Path(sys.argv[2])), None, Options(), trial)
print(len(steps))
"""


def tried(folder: Path, options: Options) -> None:
    open_tried(folder, options)  # in this process, which takes less time


def install(device: Path, folder: Path, trust: Trust | None = None, trial=tried) -> Pointer:
    return update(Shelf(device), FolderOrigin(folder), trust, OPTIONS, trial)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("other") / "bundle", 0.4)


def test_an_update_takes_the_place_of_what_was_there_and_can_be_gone_back_from(bundle, other, tmp_path):
    shelf, (old, new) = Shelf(tmp_path), map(bundle_digest, (bundle, other))
    assert install(tmp_path, bundle) == Pointer(current=old)
    assert install(tmp_path, other) == Pointer(current=new, before=old)
    assert install(tmp_path, other) == Pointer(current=new, before=old)
    assert {path.name for path in (tmp_path / "bundles").iterdir()} == {old, new}
    assert shelf.go_back().current == old
    with pytest.raises(EaglerayError, match="no bundle to go back to"):
        shelf.go_back()
    assert install(tmp_path, other).current == new
    open_tried(shelf.path(new), OPTIONS)


def test_only_the_current_bundle_and_the_one_before_are_kept(bundle, other, tmp_path):
    third = write_bundle(tmp_path / "third", 0.3)
    for folder in (bundle, other, third):
        install(tmp_path / "device", folder)
    kept = {path.name for path in (tmp_path / "device" / "bundles").iterdir()}
    assert kept == {bundle_digest(other), bundle_digest(third)}


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_killed_at_any_step_it_leaves_the_old_one_or_the_new_one(bundle, other, tmp_path, step):
    install(tmp_path, bundle)
    words = [sys.executable, "-c", UPDATE, str(tmp_path), str(other)]
    killed = subprocess.run([*words, str(step)], capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr
    shelf, (old, new) = Shelf(tmp_path), map(bundle_digest, (bundle, other))
    pointer = shelf.pointer()
    assert pointer is not None
    assert pointer.current == (new if step > STEPS - 2 else old)
    open_tried(shelf.path(pointer.current), OPTIONS)
    if pointer.before:
        open_tried(shelf.path(pointer.before), OPTIONS)
    assert install(tmp_path, other) == Pointer(current=new, before=old)
    assert {path.name for path in (tmp_path / "bundles").iterdir()} - {".staging"} == {old, new}


def test_there_are_no_other_steps(bundle, other, tmp_path):
    install(tmp_path, bundle)
    words = [sys.executable, "-c", UPDATE, str(tmp_path), str(other), "0"]
    assert int(subprocess.run(words, capture_output=True, check=True).stdout) == STEPS


def test_nothing_is_referred_to_that_is_not_on_the_disk_yet(bundle, other, tmp_path, monkeypatch):
    """A kill keeps what the system has in memory; a power failure doesn't. So the order of syncs is held."""
    install(tmp_path, bundle)
    synced: set[int] = set()
    real_sync, real_rename, real_replace = os.fsync, os.rename, os.replace
    checked: list[str] = []

    def fsync(descriptor):
        synced.add(os.fstat(descriptor).st_ino)
        real_sync(descriptor)

    def rename(source, target):
        for path in (Path(source), *Path(source).iterdir()):
            assert path.stat().st_ino in synced, path
        checked.append("bundle")
        real_rename(source, target)
        synced.discard((tmp_path / "bundles").stat().st_ino)

    def replace(source, target):
        assert Path(source).stat().st_ino in synced
        assert (tmp_path / "bundles").stat().st_ino in synced
        checked.append("pointer")
        real_replace(source, target)
        synced.discard(tmp_path.stat().st_ino)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(os, "replace", replace)
    install(tmp_path, other)
    assert checked == ["bundle", "pointer"]
    assert tmp_path.stat().st_ino in synced


def test_a_bundle_that_fails_its_trial_changes_nothing(bundle, tmp_path):
    device = tmp_path / "device"
    install(device, bundle)
    before = sorted((device / "bundles").rglob("*"))
    bad = shutil.copytree(bundle, tmp_path / "bad")
    replace_graph(bad, 0.1)
    with pytest.raises(EaglerayError, match="failed its trial") as error:
        install(device, bad, trial=try_apart)
    assert "something else of its sample" in str(error.value)
    not_onnx = shutil.copytree(bundle, tmp_path / "not-onnx")
    (not_onnx / "marks.onnx").write_bytes(b"no graph")
    from edge_bundles import reseal

    reseal(not_onnx)
    with pytest.raises(EaglerayError, match="failed its trial"):
        install(device, not_onnx, trial=try_apart)
    assert Shelf(device).pointer() == Pointer(current=bundle_digest(bundle))
    assert sorted((device / "bundles").rglob("*")) == before


def test_a_trial_that_ends_its_process_is_told(bundle, monkeypatch):
    monkeypatch.setattr("eagleray.edge.trial.__name__", "no.module")
    with pytest.raises(EaglerayError, match="failed its trial"):
        try_apart(bundle, OPTIONS)
    real = subprocess.run
    crash = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"]
    monkeypatch.setattr(subprocess, "run", lambda words, **fields: real(crash, **fields))
    with pytest.raises(EaglerayError, match="signal 11"):
        try_apart(bundle, OPTIONS)


def test_a_damaged_copy_is_refused_and_leaves_nothing(bundle, tmp_path):
    for name, content, cause in (
        ("marks.onnx", b"x", "marks.onnx was changed"),
        ("sample.json", None, "missing"),
    ):
        damaged = shutil.copytree(bundle, tmp_path / f"damaged-{name}")
        (damaged / name).unlink()
        if content:
            (damaged / name).write_bytes(content)
        with pytest.raises(EaglerayError, match=cause):
            install(tmp_path / "device", damaged)
    assert Shelf(tmp_path / "device").pointer() is None
    assert list((tmp_path / "device" / "bundles").iterdir()) == []


def test_a_file_of_another_folder_is_not_taken(bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "copy")
    told = json.loads((copy / "bundle.json").read_text())
    told["files"]["../../escaped"] = "0" * 64
    (copy / "bundle.json").write_text(json.dumps(told))
    with pytest.raises(EaglerayError, match="can't be a bundle's file"):
        install(tmp_path / "device", copy)


def test_over_http_only_what_is_signed_is_fetched(bundle, tmp_path):
    make_keys(tmp_path / "a.key", tmp_path / "a.pub")
    make_keys(tmp_path / "b.key", tmp_path / "b.pub")
    folder = shutil.copytree(bundle, tmp_path / "web" / "bundle")
    sign(folder, tmp_path / "a.key")
    (folder / "added").write_text("not signed, so not fetched")
    with files_server(tmp_path / "web") as (url, asked):
        origin = open_origin(f"{url}/bundle/")
        assert isinstance(origin, WebOrigin)
        with pytest.raises(EaglerayError, match="no trusted key"):
            update(Shelf(tmp_path / "d"), origin, Trust([tmp_path / "b.pub"]), OPTIONS, tried)
        assert asked == ["/bundle/bundle.json", "/bundle/bundle.sig"]
        pointer = update(Shelf(tmp_path / "d"), origin, Trust([tmp_path / "a.pub"]), OPTIONS, tried)
        with pytest.raises(EaglerayError, match="no bundle"):
            update(Shelf(tmp_path / "d"), open_origin(url), None, OPTIONS, tried)
    Trust([tmp_path / "a.pub"]).check_folder(Shelf(tmp_path / "d").path(pointer.current))
    with pytest.raises(EaglerayError, match="can't be fetched"):
        update(Shelf(tmp_path / "d"), origin, None, OPTIONS, tried)


def test_an_unsigned_bundle_may_be_signed_later(bundle, tmp_path):
    make_keys(tmp_path / "a.key", tmp_path / "a.pub")
    folder, trust = shutil.copytree(bundle, tmp_path / "copy"), Trust([tmp_path / "a.pub"])
    pointer = install(tmp_path / "d", folder)
    with pytest.raises(EaglerayError, match="not signed"):
        install(tmp_path / "d", folder, trust)
    sign(folder, tmp_path / "a.key")
    assert install(tmp_path / "d", folder, trust) == pointer
    trust.check_folder(Shelf(tmp_path / "d").path(pointer.current))


def test_a_bundle_that_ends_the_process_each_time_is_gone_back_from(bundle, other, tmp_path):
    install(tmp_path, bundle)
    shelf, (old, new) = Shelf(tmp_path), map(bundle_digest, (bundle, other))
    shelf.attempt()
    shelf.prove(old)
    assert shelf.attempt() == Pointer(current=old, attempts=1, proven=True)
    install(tmp_path, other)
    assert [shelf.attempt().current for _ in range(3)] == [new, new, old]
    assert shelf.pointer() == Pointer(current=old, proven=True)


def test_a_pointer_that_something_else_has_changed_is_told(bundle, tmp_path):
    install(tmp_path, bundle)
    (tmp_path / "current.json").write_text("{}")
    with pytest.raises(EaglerayError, match="changed by something else"):
        Shelf(tmp_path).pointer()
