"""The process in which strangers' files are decoded: it takes them from a socket and gives arrays back.

Once everything is loaded it gives up what it doesn't need: it can open no file and no connection, write no
file, start no program as somebody else, and has so much memory and time for each file. As root it becomes
nobody: then whoever takes it over by a hole in a decoder can send wrong arrays back, and that is all. Else it
keeps its user, whose other processes it might signal or trace, unless the system forbids that.
"""

from __future__ import annotations

import base64
import ctypes
import io
import math
import os
import resource
import socket
import struct
import sys
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from ...pipelines.spec import Preparation
from .inputs import TASKS, Task, modality_of, open_media
from .messages import Refusal, refusal
from .spec import LimitsSpec

ASKED = struct.Struct(">BQ")
"""Number of the task, bytes that follow."""
ANSWERED = struct.Struct(">BdQ")
"""Whether it is arrays (safetensors) or a refusal (JSON), seconds of a CPU, bytes that follow."""
ARRAYS, REFUSED = range(2)
READY = b"r"
NOBODY = 65534
KEPT_BLOCKS = 16
"""Pillow's of 16 MiB at the most, kept for the next picture: to get them from the system anew takes a tenth
as long as decoding."""
_NO_NEW_PRIVILEGES = 38  # prctl(2)


def main() -> None:
    """Serve until the other end of standard input, a socket, is closed."""
    preparation = Preparation.model_validate_json(sys.argv[1])
    limits = LimitsSpec.model_validate_json(sys.argv[2])
    channel = socket.socket(fileno=os.dup(0))
    _load_all(preparation, limits)
    _confine(limits)
    channel.sendall(READY)
    while (head := _receive(channel, ASKED.size)) is not None:
        number, length = ASKED.unpack(head)
        sent = _receive(channel, length)
        if sent is None:
            break
        begun = time.process_time()
        _limit_time(begun, limits)
        kind, body = _answer(TASKS[number], sent, preparation, limits)
        channel.sendall(ANSWERED.pack(kind, time.process_time() - begun, len(body)) + body)


def _answer(task: Task, sent: bytes, preparation: Preparation, limits: LimitsSpec) -> tuple[int, bytes]:
    try:
        found = open_media(task, sent, preparation, limits)
        if not isinstance(found, Refusal):
            return ARRAYS, save({name: np.ascontiguousarray(array) for name, array in found.items()})
    except MemoryError:
        found = too_much(task, f"{limits.decode_memory_bytes:,} bytes of memory")
    return REFUSED, refusal_json(found)


def too_much(task: Task, what: str) -> Refusal:
    """The refusal of a file that takes more than is given."""
    name = {"image": "picture", "speech": "recording", "document": "document", "volume": "volume"}[
        modality_of(task)
    ]
    return refusal(
        413, "too-much-to-decode", f"decoding the {name} takes more than {what}", "send a simpler one"
    )


def refusal_json(found: Refusal) -> bytes:
    """A refusal as it is sent; without a traceback, and without pickle."""
    return f"{found.status} ".encode() + found.problem.model_dump_json().encode()


def _receive(channel: socket.socket, length: int) -> bytes | None:
    """So many bytes; None when the other end is closed."""
    data = bytearray(length)
    view, done = memoryview(data), 0
    while done < length:
        count = channel.recv_into(view[done:])
        if not count:
            return None
        done += count
    return bytes(data)


def _load_all(preparation: Preparation, limits: LimitsSpec) -> None:
    """Open a file of each kind, so that whatever is loaded late is loaded now."""
    import soundfile
    from PIL import Image

    Image.init()
    Image.core.set_blocks_max(KEPT_BLOCKS)
    picture = Image.new("RGBA", (64, 64), (200, 30, 30, 128))
    for name in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        buffer = io.BytesIO()
        picture.convert("RGB" if name in ("JPEG", "BMP") else "RGBA").save(buffer, name)
        for task in ("image", "whole-image"):
            open_media(task, base64.b64encode(buffer.getvalue()), preparation, limits)
    for content in (
        b"NRRD0004\n\n",
        b"ObjectType = Image\n",
        b"PK\x03\x04",
        bytes(352),
        b"\0" * 128 + b"DICM",
    ):
        open_media("volume", base64.b64encode(content), preparation, limits)  # broken ones load as much
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>'
    open_media("image", base64.b64encode(svg), preparation, limits)
    for page in (b"<html><body>One<table><tr><td>1<td>2</table></html>", b"One", _pdf()):
        open_media("document", base64.b64encode(page), preparation, limits)
    for name, kind in (("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")):
        buffer = io.BytesIO()
        soundfile.write(buffer, np.sin(np.arange(8000.0)), 11_025, format=name, subtype=kind)
        open_media("stretches", buffer.getvalue(), preparation, limits)


def _pdf() -> bytes:
    """An empty page."""
    from pypdf import PdfWriter

    writer, buffer = PdfWriter(), io.BytesIO()
    writer.add_blank_page(9, 9)
    writer.write(buffer)
    return buffer.getvalue()


def _confine(limits: LimitsSpec) -> None:
    """Give up what isn't needed any more."""
    ctypes.CDLL(None).prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    memory = pages * resource.getpagesize() + limits.decode_memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    for one in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE, resource.RLIMIT_NPROC, resource.RLIMIT_NOFILE):
        resource.setrlimit(one, (0, 0))


def _limit_time(used: float, limits: LimitsSpec) -> None:
    """End by itself, even if nobody is left who would end it."""
    soft = math.ceil(used + limits.decode_timeout_s) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
