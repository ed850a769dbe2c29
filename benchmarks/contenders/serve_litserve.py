"""LitServe with two workers and its own batching: serve_litserve.py BUNDLE."""

from __future__ import annotations

import os
import sys
from typing import Any

import litserve
from serving import Whole, contend


class Answers(litserve.LitAPI):
    """The model as LitServe calls it."""

    def setup(self, device: str) -> None:
        """Load the bundle."""
        self.model = Whole(os.environ["BUNDLE"])

    def decode_request(self, request):
        """Decode one request."""
        return self.model.prepare(request)

    def batch(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Requests that run together."""
        return inputs

    def predict(self, inputs: list[dict[str, Any]]) -> list[str]:
        """Answer them."""
        return self.model.answer(inputs)

    def unbatch(self, output: list[str]) -> list[str]:
        """One for each request."""
        return output

    def encode_response(self, output: str) -> dict[str, str]:
        """What is sent."""
        return {"answer": output}


if __name__ == "__main__":
    if "BUNDLE" in os.environ:
        server = litserve.LitServer(
            Answers(max_batch_size=16, batch_timeout=0.005, api_path="/v1/answer"),
            accelerator="cpu",
            workers_per_device=2,
        )
        server.run(host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False)
    else:
        contend([sys.executable, __file__], "/health", {"BUNDLE": sys.argv[1]})
