"""A folder of samples is closed, bounded, and touches nothing that isn't its own."""

import asyncio
import json
import os
import stat

import pytest

from eagleray.actors.serving.guard import MIRRORED
from eagleray.actors.serving.keeping import Keep, SampleFolder
from eagleray.actors.serving.spec import SamplesSpec


def folder(where, **bounds):
    return SampleFolder(SamplesSpec(folder=str(where), **bounds))


def kept(where):
    return [path.read_text() for path in sorted(where.glob("*.json")) if path.name != "mine.json"]


def test_the_oldest_go_when_there_are_too_many(tmp_path):
    samples = folder(tmp_path / "kept", most=3)
    for number in range(5):
        samples.add({"number": number}, number)
    assert kept(tmp_path / "kept") == ['{"number": 2}', '{"number": 3}', '{"number": 4}']


def test_samples_stand_in_the_order_of_their_times_however_late_they_are_written(tmp_path):
    samples = folder(tmp_path / "kept")
    for number in (1, 0, 2):
        samples.add({"number": number}, number)
    assert kept(tmp_path / "kept") == ['{"number": 0}', '{"number": 1}', '{"number": 2}']


def test_the_oldest_go_when_they_take_too_many_bytes(tmp_path):
    samples = folder(tmp_path / "kept", most_bytes=100)
    for number in range(5):
        samples.add({"number": f"{number}" * 20}, number)
    found = kept(tmp_path / "kept")
    assert [text[12] for text in found] == ["3", "4"]
    samples.add({"number": "x" * 200}, 5)
    assert kept(tmp_path / "kept") == found


def test_what_a_killed_replica_left_half_written_goes_with_the_oldest(tmp_path):
    left = tmp_path / "00000000000000000001-0123abcd.json.arriving"
    left.write_text("half")
    os.chmod(tmp_path, 0o700)
    samples = folder(tmp_path, most=1)
    samples.add({}, 1)
    assert not left.exists()


def test_nothing_else_in_the_folder_is_touched(tmp_path):
    (tmp_path / "mine.json").write_text("mine")
    os.chmod(tmp_path, 0o700)
    samples = folder(tmp_path, most=1)
    for number in range(3):
        samples.add({}, number)
    assert (tmp_path / "mine.json").read_text() == "mine"
    assert len(kept(tmp_path)) == 1


def test_nothing_is_written_where_others_may_read(tmp_path):
    os.chmod(tmp_path, 0o755)
    with pytest.raises(PermissionError, match="chmod 700"):
        folder(tmp_path).add({}, 0)
    assert list(tmp_path.iterdir()) == []


def test_files_are_their_owners_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        folder(tmp_path / "kept").add({}, 0)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "kept").stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "kept").iterdir()] == [0o600]


def test_a_folder_that_each_process_finds_elsewhere_is_refused():
    with pytest.raises(ValueError, match="absolute"):
        SamplesSpec(folder="kept")


@pytest.mark.parametrize(
    ("path", "more", "is_kept"),
    [
        ("/v1/embed", {}, True),
        ("/v2/models/embed/infer", {}, True),
        ("/healthz", {}, False),
        ("/v1/drift", {}, False),
        ("/v1/embed", {MIRRORED: True}, False),
    ],
)
def test_only_what_somebody_asked_the_model_is_kept(tmp_path, path, more, is_kept):
    async def app(scope, receive, send):
        asked = (await receive())["body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"said ", "more_body": True})
        await send({"type": "http.response.body", "body": asked})

    async def receive():
        return {"type": "http.request", "body": b"\xff\x00"}

    async def send(message):
        sent.append(message)

    sent = []
    keep = Keep(app, SamplesSpec(folder=str(tmp_path / "kept"), share=1), "b1")

    async def run():
        await keep({"type": "http", "path": path, "method": "POST", **more}, receive, send)
        await asyncio.gather(*keep._keeping)

    asyncio.run(run())
    assert len(sent) == 3
    found = [json.loads(one) for one in kept(tmp_path / "kept")]
    assert [(one["path"], one["bundle"], one["request"]) for one in found] == (
        [(path, "b1", {"base64": "/wA="})] if is_kept else []
    )
