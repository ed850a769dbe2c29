"""From what a request carries to what a graph takes; runs in the replica's decoding threads."""

from __future__ import annotations

import base64
import binascii
import re
from typing import TypeAlias

from ...pipelines.bundle import Arrays, LoadedBundle, Modality
from .messages import Input, Refusal, refusal

Prepared: TypeAlias = tuple[Modality, Arrays]

_DATA_URI = re.compile(r"data:(?P<type>[^;,]*)(?:;[^;,]*)*?(?P<base64>;base64)?,(?P<data>.*)", re.DOTALL)
_MEDIA_TYPES = {"image": ("image/",), "speech": ("audio/", "application/ogg")}
_FORMATS = {"image": "PNG, JPEG, WebP, GIF or SVG", "speech": "WAV, Ogg or FLAC"}


def prepare(bundle: LoadedBundle, query: Input) -> Prepared | Refusal:
    """Decode an input and prepare it as the corpus was, or say why it can't be."""
    if query.text is not None:
        if not query.text.strip():
            return refusal(422, "empty-text", "the text holds nothing but spaces", "send some words")
        return "text", bundle.prepare_text(query.text)
    modality = query.modality
    data = unwrap(modality, query.image or query.speech or "")
    if isinstance(data, Refusal):
        return data
    try:
        arrays = bundle.prepare_image(data) if modality == "image" else bundle.prepare_speech(data)
    except ValueError as error:
        return undecodable(modality, error)
    return modality, arrays


def undecodable(modality: Modality, error: ValueError) -> Refusal:
    """Say that a picture or a recording can't be read."""
    return refusal(422, f"undecodable-{modality}", str(error), f"send {_FORMATS[modality]}")


def unwrap(modality: Modality, encoded: str) -> bytes | Refusal:
    """Decode base64 or a data URI."""
    if encoded.startswith("data:"):
        uri = _DATA_URI.fullmatch(encoded)
        if uri is None or uri["base64"] is None:
            return refusal(
                400, "invalid-data-uri", "the data URI can't be read", "send data:<media type>;base64,<data>"
            )
        if not uri["type"].startswith(_MEDIA_TYPES[modality]):
            return refusal(
                415,
                "unsupported-media-type",
                f"{uri['type'] or 'text/plain'} is not {modality}",
                f"send {_FORMATS[modality]}",
            )
        encoded = uri["data"]
    try:
        data = base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: characters outside ASCII
        return refusal(
            400, "invalid-base64", f"the {modality} is no base64: {error}", "encode the file's bytes"
        )
    if not data:
        return refusal(422, f"empty-{modality}", f"the {modality} has 0 bytes", f"send {_FORMATS[modality]}")
    return data
