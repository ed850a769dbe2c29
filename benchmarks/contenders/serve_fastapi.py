"""Plain FastAPI and uvicorn with two workers, each request in a thread by itself: serve_fastapi.py BUNDLE."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from serving import Whole, contend

app = FastAPI()
if "BUNDLE" in os.environ:
    model = Whole(os.environ["BUNDLE"])

    @app.post("/v1/answer")
    def answer(sent: dict[str, Any]) -> dict[str, str]:
        """Answer one request."""
        return {"answer": model.answer([model.prepare(sent)])[0]}


if __name__ == "__main__":
    folder = Path(__file__).parent
    contend(
        [
            *(sys.executable, "-m", "uvicorn", "serve_fastapi:app", "--port", "PORT", "--workers", "2"),
            *("--log-level", "warning", "--app-dir", str(folder)),
        ],
        "/openapi.json",
        {"BUNDLE": sys.argv[1], "PYTHONPATH": f"{folder}{os.pathsep}{os.environ['PYTHONPATH']}"},
    )
