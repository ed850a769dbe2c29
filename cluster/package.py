"""This installation as something another machine can import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ..workflows.errors import EaglerayError


def package(folder: Path) -> Path:
    """A wheel of this code in `folder`, or, installed from one, the installed package itself.

    Raises:
        EaglerayError: when the wheel can't be built, with pip's last line.
    """
    root = Path(__file__).resolve().parent.parent
    if not (root / "pyproject.toml").is_file():
        return root
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("eagleray-*.whl"):
        old.unlink()
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(folder),
        str(root),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("eagleray-*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EaglerayError(f"the wheel for the cluster could not be built: {last}", where=str(root))
    return wheels[-1]
