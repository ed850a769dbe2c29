"""From what a request carries to what a graph takes. Loads no model: pictures and speech are opened in a
process that has nothing (see `sandbox`).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np

from ...pipelines.media import audio, image
from ...pipelines.media.documents import document_text
from ...pipelines.media.opening import open_volume
from ...pipelines.media.prepare import Arrays, prepare_image, prepare_seen, prepare_speech, prepare_stretches
from ...pipelines.media.text import cut, pad, token_ids
from ...pipelines.quarantine import Refused
from ...pipelines.spec import Preparation
from .messages import Refusal, refusal
from .spec import LimitsSpec

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Sent: TypeAlias = Literal["image", "speech", "document", "volume"]
Task: TypeAlias = Literal["image", "seen-image", "speech", "stretches", "document", "whole-image", "volume"]
"""What may be opened: a picture, without or with what moderation sees of it; speech, as a request has it;
the bytes of a recording in stretches; and whole, as they are assessed, a document, a picture, a volume."""
_OF: Mapping[Task, Sent] = {
    "image": "image",
    "seen-image": "image",
    "speech": "speech",
    "stretches": "speech",
    "document": "document",
    "whole-image": "image",
    "volume": "volume",
}
TASKS: tuple[Task, ...] = get_args(Task)
WHOLE: tuple[Task, ...] = ("document", "whole-image", "volume")
"""Of which a refusal says in its code what is the matter."""

_DATA_URI = re.compile(rb"data:(?P<type>[^;,]*)(?:;[^;,]*)*?(?P<base64>;base64)?,(?P<data>.*)", re.DOTALL)
_MEDIA_TYPES: Mapping[Sent, tuple[str, ...]] = {
    "image": ("image/",),
    "speech": ("audio/", "application/ogg"),
    "document": ("text/", "application/pdf", "application/xhtml+xml"),
    "volume": ("application/",),
}
_FORMATS: Mapping[Sent, str] = {
    "image": "PNG, JPEG, WebP, GIF or SVG",
    "speech": "WAV, Ogg or FLAC",
    "document": "a PDF, HTML or plain text",
    "volume": "NIfTI, NRRD, MetaImage or a zip of a series' DICOM slices",
}
_LONGEST_TOKEN = 64  # characters; the longest of a vocabulary have some dozens


def read_text(
    string: str, tokenizer: Tokenizer, preparation: Preparation, limits: LimitsSpec
) -> Arrays | Refusal:
    """Make tokens (T,) int64 and token_mask (T,) bool of a text, or say why that can't be."""
    if not string.strip():
        return refusal(422, "empty-text", "the text holds nothing but spaces", "send some words")
    if len(string) <= longest_text(limits):
        (ids,) = token_ids(tokenizer, [string])
        if len(ids) <= limits.max_text_tokens:
            tokens, mask = pad([cut(ids, preparation.max_tokens)], preparation.max_tokens)
            return {"tokens": tokens[0], "token_mask": mask[0]}
    message = f"the text of {len(string)} characters has more than {limits.max_text_tokens} tokens"
    return refusal(413, "text-too-long", message, "send less of it")


def longest_text(limits: LimitsSpec) -> int:
    """Characters beyond which a text surely has too many tokens."""
    return limits.max_text_tokens * _LONGEST_TOKEN


def open_media(task: Task, sent: bytes, preparation: Preparation, limits: LimitsSpec) -> Arrays | Refusal:
    """Decode a picture, a recording or a document and prepare it as the corpus was, or say why it can't be.

    What is assessed whole becomes: a document its text, uint8 in UTF-8; a picture its pixels (H, W, 3); a
    volume its voxels (D, H, W) and where they lie.

    Args:
        task: what to make of it.
        sent: for `stretches` the recording, else base64 or a data URI.
        preparation: of the corpus.
        limits: what it may be, by what it says of itself.
    """
    modality = modality_of(task)
    data = sent if task == "stretches" else unwrap(modality, sent)
    if isinstance(data, Refusal):
        return data
    large = _check_size(modality, data, limits)
    if large is not None:
        return large
    try:
        if task == "whole-image":
            return {"pixels": image.whole(data)}
        if modality == "image":
            return (prepare_image if task == "image" else prepare_seen)(data, preparation)
        if modality == "document":
            return {"text": np.frombuffer(document_text(data).encode(), np.uint8)}
        if modality == "volume":
            found = open_volume(data)
            return {
                "voxels": found.voxels.astype(np.float32),
                "spacing_mm": found.spacing_mm,
                "origin_mm": found.origin_mm,
                "direction": found.direction,
            }
        return (prepare_speech if task == "speech" else prepare_stretches)(data, preparation)
    except Refused as error:
        if error.reason == "image-too-large":
            return refusal(413, error.reason, str(error), "send a smaller one")
        if task in WHOLE:
            return refusal(422, error.reason, str(error), f"send {_FORMATS[modality]}")
        return refusal(422, f"undecodable-{modality}", str(error), f"send {_FORMATS[modality]}")


def modality_of(task: Task) -> Sent:
    """What is opened."""
    return _OF[task]


def unwrap(modality: Sent, encoded: bytes) -> bytes | Refusal:
    """Decode base64 or a data URI."""
    if encoded.startswith(b"data:"):
        uri = _DATA_URI.fullmatch(encoded)
        if uri is None or uri["base64"] is None:
            return refusal(
                400, "invalid-data-uri", "the data URI can't be read", "send data:<media type>;base64,<data>"
            )
        media_type = uri["type"].decode(errors="replace")
        if not media_type.startswith(_MEDIA_TYPES[modality]):
            return refusal(
                415,
                "unsupported-media-type",
                f"{media_type or 'text/plain'} is not {modality}",
                f"send {_FORMATS[modality]}",
            )
        encoded = uri["data"]
    try:
        data = base64.b64decode(b"".join(encoded.split()), validate=True)
    except binascii.Error as error:
        return refusal(
            400, "invalid-base64", f"the {modality} is no base64: {error}", "encode the file's bytes"
        )
    if not data:
        return refusal(422, f"empty-{modality}", f"the {modality} has 0 bytes", f"send {_FORMATS[modality]}")
    return data


def _check_size(modality: Sent, data: bytes, limits: LimitsSpec) -> Refusal | None:
    """Refuse by the header what would be too much to decode."""
    if modality in ("document", "volume"):
        return None
    if modality == "image":
        size = image.size_of(data)
        if size is None or size[0] * size[1] <= limits.max_pixels:
            return None
        message = f"the picture of {size[0]}x{size[1]} pixels is over {limits.max_pixels:,} pixels"
        return refusal(413, "image-too-large", message, "send a smaller one")
    seconds = audio.duration_of(data)
    if seconds is None or seconds <= limits.max_speech_s:
        return None
    message = f"the recording of {seconds:,.1f} s is over {limits.max_speech_s:g} s"
    return refusal(413, "speech-too-long", message, "send it in pieces")
