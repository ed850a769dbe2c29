"""A bundle is what was signed, all of it and nothing more."""

from __future__ import annotations

import shutil
import stat

import pytest
from edge_bundles import reseal

from eagleray.edge.signing import Trust, make_keys, sign
from eagleray.workflows.errors import EaglerayError


@pytest.fixture
def keys(tmp_path):
    for name in ("ours", "theirs"):
        make_keys(tmp_path / f"{name}.key", tmp_path / f"{name}.pub")
    return tmp_path


@pytest.fixture
def signed(bundle, keys, tmp_path):
    folder = shutil.copytree(bundle, tmp_path / "signed")
    sign(folder, keys / "ours.key")
    return folder


def test_a_signed_bundle_is_taken_by_whoever_trusts_its_key(signed, keys):
    Trust([keys / "ours.pub"]).check_folder(signed)
    Trust([keys / "theirs.pub", keys / "ours.pub"]).check_folder(signed)
    with pytest.raises(EaglerayError, match="no trusted key"):
        Trust([keys / "theirs.pub"]).check_folder(signed)


def changed(folder):
    path = folder / "marks.onnx"
    path.write_bytes(path.read_bytes() + b"\0")


def changed_and_sealed_again(folder):
    changed(folder)
    reseal(folder)


def added(folder):
    (folder / "more.onnx").write_bytes(b"more")


def added_folder(folder):
    (folder / "more").mkdir()


def missing(folder):
    (folder / "sample.json").unlink()


def unsigned(folder):
    (folder / "bundle.sig").unlink()


def cut_short(folder):
    path = folder / "bundle.sig"
    path.write_bytes(path.read_bytes()[:40])


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (changed, "marks.onnx was changed"),
        (changed_and_sealed_again, "bundle.json was changed"),
        (added, "more.onnx is no part"),
        (added_folder, "more is no part"),
        (missing, "sample.json is missing"),
        (unsigned, "not signed"),
        (cut_short, "no trusted key"),
    ],
)
def test_whatever_was_changed_is_refused(signed, keys, change, cause):
    change(signed)
    with pytest.raises(EaglerayError, match=cause) as error:
        Trust([keys / "ours.pub"]).check_folder(signed)
    assert error.value.remedy
    assert error.value.where


@pytest.mark.parametrize("change", [changed, added, missing])
def test_what_is_not_whole_is_not_signed(bundle, keys, tmp_path, change):
    folder = shutil.copytree(bundle, tmp_path / "copy")
    change(folder)
    with pytest.raises(EaglerayError):
        sign(folder, keys / "ours.key")
    assert not (folder / "bundle.sig").exists()


def test_keys_are_not_written_over_and_the_private_one_is_private(keys):
    assert stat.S_IMODE((keys / "ours.key").stat().st_mode) == 0o600
    before = (keys / "ours.key").read_bytes()
    with pytest.raises(EaglerayError, match="a key already"):
        make_keys(keys / "ours.key", keys / "other.pub")
    assert (keys / "ours.key").read_bytes() == before


def test_what_is_no_key_is_told(bundle, signed, keys, tmp_path):
    (tmp_path / "none.pem").write_text("no key")
    for path in (tmp_path / "none.pem", keys / "ours.key", tmp_path / "missing"):
        with pytest.raises(EaglerayError, match="no Ed25519 key"):
            Trust([path])
    with pytest.raises(EaglerayError, match="no Ed25519 key"):
        sign(signed, keys / "ours.pub")
