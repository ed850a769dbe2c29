"""Strangers' files are decoded where they can do nothing, and one that fails takes nothing with it."""

import asyncio
import base64
import io
import os
import signal
import subprocess
import sys
import time
import wave
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eagleray.actors.serving import sandboxed
from eagleray.actors.serving.messages import Refusal
from eagleray.actors.serving.sandbox import Sandbox
from eagleray.actors.serving.spec import LimitsSpec
from eagleray.pipelines.media.prepare import prepare_stretches
from eagleray.pipelines.spec import Preparation

PREPARATION = Preparation(image_size=32, stored_image_size=36)


@pytest.fixture(scope="module")
def sandbox():
    made = Sandbox(PREPARATION, LimitsSpec(), 1)
    made.wait()
    yield made
    made.close()


def limited(**limits):
    made = Sandbox(PREPARATION, LimitsSpec(**limits), 1)
    made.wait()
    return made


def open_all(sandbox, *asked):
    async def run():
        return await asyncio.gather(*(sandbox.open(task, sent) for task, sent in asked))

    return asyncio.run(run())


def pid(sandbox):
    (cell,) = sandbox._all
    return cell._process.pid


def of_process(number, name):
    """What the system says of a process; empty once it is gone."""
    try:
        return Path(f"/proc/{number}/{name}").read_text()
    except OSError:
        return ""


def noise(side):
    buffer = io.BytesIO()
    Image.effect_noise((side, side), 90).convert("RGBA").save(buffer, "PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue())


def test_what_comes_out_is_what_the_corpus_has(sandbox, loaded_bundle, png, wav):
    preparation = loaded_bundle.info.preparation
    own = Sandbox(preparation, LimitsSpec(), 2)
    try:
        picture, speech, stretches, broken = open_all(
            own,
            ("image", base64.b64encode(png)),
            ("speech", base64.b64encode(wav)),
            ("stretches", wav),
            ("image", b"%"),
        )
    finally:
        own.close()
    for found, expected in (
        (picture, loaded_bundle.prepare_image(png)),
        (speech, loaded_bundle.prepare_speech(wav)),
        (stretches, prepare_stretches(wav, preparation)),
    ):
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert broken.problem.code == "invalid-base64"


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM"])
def test_pictures_of_all_kinds_are_opened_without_opening_files(sandbox, name):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 30, 30)).save(buffer, name)
    (found,) = open_all(sandbox, ("image", base64.b64encode(buffer.getvalue())))
    assert found["image"].shape == (3, 32, 32)


def test_a_process_has_no_files_no_programs_and_no_secrets(sandbox):
    limits = of_process(pid(sandbox), "limits")
    for name in ("Max open files", "Max file size", "Max processes", "Max core file size"):
        line = next(one for one in limits.splitlines() if one.startswith(name))
        assert line[len(name) :].split()[:2] == ["0", "0"]
    status = of_process(pid(sandbox), "status")
    assert "NoNewPrivs:\t1" in status
    if os.geteuid() == 0:
        assert f"Uid:\t{sandboxed.NOBODY}" in status
        assert "CapEff:\t0000000000000000" in status


def test_a_secret_of_the_environment_is_not_passed_on(monkeypatch):
    monkeypatch.setenv("A_SECRET", "hush")
    made = limited()
    try:
        if os.geteuid() == 0:
            assert "hush" not in of_process(pid(made), "environ")
        assert "A_SECRET" not in str(made._command)
    finally:
        made.close()


def test_confined_it_can_open_nothing():
    code = (
        "from eagleray.actors.serving import sandboxed; from eagleray.actors.serving.spec import LimitsSpec\n"
        "import socket\n"
        "sandboxed._confine(LimitsSpec())\n"
        "for act in (lambda: open('/etc/passwd'), lambda: socket.socket()):\n"
        "    try: act(); print('opened')\n"
        "    except OSError as error: print(error.errno)\n"
        "try: bytearray(LimitsSpec().decode_memory_bytes + 2**20); print('had')\n"
        "except MemoryError: print('no memory')\n"
    )
    path = os.pathsep.join(one for one in sys.path if one)
    found = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert found.stdout.split("\n")[:3] == ["24", "24", "no memory"], found.stderr


def test_one_that_takes_too_long_is_refused_and_the_next_is_served(png):
    made = limited(decode_timeout_s=0.3)
    try:
        first = pid(made)
        slow, quick = open_all(made, ("image", noise(4900)), ("image", base64.b64encode(png)))
        assert (slow.status, slow.problem.code) == (413, "too-much-to-decode")
        assert quick["image"].shape == (3, 32, 32)
        assert pid(made) != first
    finally:
        made.close()


def test_one_that_takes_too_much_memory_is_refused():
    made = limited(decode_memory_bytes=2**26)
    try:
        large, small = open_all(made, ("image", noise(4900)), ("image", noise(64)))
        assert isinstance(large, Refusal)
        assert large.status in (413, 422)
        assert small["image"].shape == (3, 32, 32)
    finally:
        made.close()


def test_a_process_that_ends_is_replaced(sandbox, png):
    asked = ("image", base64.b64encode(png))
    os.kill(pid(sandbox), signal.SIGKILL)
    time.sleep(0.2)
    (found,) = open_all(sandbox, asked)  # it had nothing to do: no request pays for it
    assert found["image"].shape == (3, 32, 32)

    async def killed_meanwhile():
        going = asyncio.create_task(sandbox.open("image", noise(4900)))
        await asyncio.sleep(0.2)
        os.kill(pid(sandbox), signal.SIGKILL)
        return await going, await sandbox.open(*asked)

    lost, found = asyncio.run(killed_meanwhile())
    assert (lost.status, lost.problem.code) == (422, "undecodable-image")
    assert found["image"].shape == (3, 32, 32)


def test_whoever_goes_away_leaves_the_process_in_order(sandbox, png):
    asked = ("image", base64.b64encode(png))

    async def run():
        (expected,) = await asyncio.gather(sandbox.open(*asked))
        gone = asyncio.create_task(sandbox.open("image", noise(3000)))
        await asyncio.sleep(0.05)
        gone.cancel()
        return expected, await sandbox.open(*asked)

    expected, found = asyncio.run(run())
    assert np.array_equal(expected["image"], found["image"])


def test_it_ends_with_whoever_started_it(png):
    code = (
        "from eagleray.actors.serving.sandbox import Sandbox; from eagleray.actors.serving.spec import *\n"
        "from eagleray.pipelines.spec import Preparation\n"
        "s = Sandbox(Preparation(), LimitsSpec(), 1); s.wait()\n"
        "print([c._process.pid for c in s._all][0], flush=True); import os; os._exit(0)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    number = int(found.stdout)
    until = time.monotonic() + 10
    while of_process(number, "cmdline") and time.monotonic() < until:
        time.sleep(0.05)
    assert not of_process(number, "cmdline")


def test_a_bomb_is_refused_by_its_header(sandbox):
    header = b"IHDR" + (40_000).to_bytes(4, "big") * 2 + b"\x08\x06\x00\x00\x00"
    bomb = b"\x89PNG\r\n\x1a\n\x00\x00\x00\r" + header + zlib.crc32(header).to_bytes(4, "big")
    bomb += b"\x00\x00\x10\x00IDAT" + zlib.compress(bytes(1000))
    (found,) = open_all(sandbox, ("image", base64.b64encode(bomb)))
    assert (found.status, found.problem.code) == (413, "image-too-large")


def test_a_recording_that_claims_hours_is_refused_by_its_header(sandbox):
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(1000)
        file.writeframes(bytes(1000 * 130))
    (found,) = open_all(sandbox, ("stretches", buffer.getvalue()))
    assert (found.status, found.problem.code) == (413, "speech-too-long")
