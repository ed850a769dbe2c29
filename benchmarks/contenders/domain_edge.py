"""Tiles of boards by `eagleray edge run`, on one core that is held to one thread: how many a second of that
core's time, from the first result on, and the most memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

bundle, tiles, form, overlap = sys.argv[1:]
count = len(list(Path(tiles).iterdir()))
hertz = os.sysconf("SC_CLK_TCK")


def cpu_s(process: int) -> float:
    """What a process has used of CPUs, seconds."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / hertz


with tempfile.TemporaryDirectory() as device:
    command = [sys.executable, "-m", "eagleray.cli", "edge", "run", bundle, "--source", tiles]
    command += ["--device", device, "--limit", str(count), "--overlap", overlap, "--threads", "1"]
    command += ["--form", form] if form else []
    core = sorted(os.sched_getaffinity(0))[-1]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: os.sched_setaffinity(0, {core})
    ) as process:
        assert process.stdout is not None
        seen: list[float] = []
        for line in process.stdout:
            json.loads(line)
            seen.append(cpu_s(process.pid))
            if len(seen) == count - 1:  # it may be gone at the next one
                status = Path(f"/proc/{process.pid}/status").read_text()
                peak_mib = int(status.partition("VmHWM:")[2].split()[0]) / 1024
print(json.dumps({"pictures_per_s": (count - 2) / (seen[count - 2] - seen[0]), "peak_mib": peak_mib}))
