"""Eagleray's server: serve_eagleray.py BUNDLE."""

from __future__ import annotations

import subprocess
import sys
import tempfile

from serving import contend

with tempfile.TemporaryDirectory() as home:
    command = [sys.executable, "-m", "eagleray.cli"]
    try:
        contend([*command, "serve", sys.argv[1], "--port", "PORT", "--home", home], "/healthz")
    finally:
        subprocess.run([*command, "down", "--home", home], check=False, capture_output=True)
