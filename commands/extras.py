"""What of an installation may be missing, and how to get it."""

from __future__ import annotations

from collections.abc import Mapping

EXTRAS: Mapping[str, frozenset[str]] = {
    "edge": frozenset({"cryptography"}),
    "camera": frozenset({"av"}),
    "documents": frozenset({"pypdf", "selectolax", "tokenizers"}),
    "volumes": frozenset({"nibabel", "nrrd", "pydicom", "scipy"}),
    "platform": frozenset(
        {
            *{"defusedxml", "fastapi", "flashlight", "gerbonara", "google", "grpc", "jiwer", "onnx"},
            *{"onnxscript", "opentelemetry", "py3langid", "pyarrow", "python_multipart", "ray", "rdata"},
            *{"safetensors", "silero_vad", "soundfile", "soxr", "sqlalchemy", "starlette", "torch"},
            *{"torchmetrics"},
        }
    ),
}
"""Extra of `pip install 'eagleray[EXTRA]'` → modules that it brings, and those before it don't."""


def extra_of(missing: ModuleNotFoundError) -> str | None:
    """The extra that would bring a module that isn't there; None where none does."""
    top = (missing.name or "").partition(".")[0]
    return next((extra for extra, modules in EXTRAS.items() if top in modules), None)
