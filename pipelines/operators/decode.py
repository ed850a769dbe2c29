"""Decoding what a source gives: pictures to pixels, recordings to waves. Put first where a source has any."""

from __future__ import annotations

from typing import Literal

from ..operator import Apply, Operator, OperatorSpec
from ..quarantine import Refuse, Refused
from ..source import Row
from ..spec import Preparation


class DecodeImageSpec(OperatorSpec):
    """Decode a picture to the corpus's stored size."""

    kind: Literal["decode-image"] = "decode-image"


class DecodeSpeechSpec(OperatorSpec):
    """Decode the recordings to mono waves at the corpus's sample rate."""

    kind: Literal["decode-speech"] = "decode-speech"


def decode_image(spec: DecodeImageSpec, preparation: Preparation) -> Apply:
    """`picture` → `image`, and `mask` to its size where there is one; a picture of one colour is refused."""
    from ..media import image, masks

    side = preparation.stored_image_size

    def fitted(marked: Row, width: int, height: int) -> Row:
        """The columns of a mask; what cuts the picture itself needs the one of its size."""
        stored = masks.encode(masks.fit(masks.read(marked, width, height), side, preparation.fit))
        return {"mask": {"labels": marked["labels"], "content": stored}, "source_mask": marked}

    def apply(row: Row, refuse: Refuse) -> Row | None:
        marked = row.get("mask")
        if row["picture"] is None:
            return {"image": None} if marked is None else {"image": None, "mask": None}
        decoded = image.read(row["picture"]["content"], side, preparation.fit)
        pixels = decoded.pixels.tobytes()
        colour, middle = pixels[:3], len(pixels) // 6 * 3
        if pixels[middle : middle + 3] == colour and pixels == colour * (len(pixels) // 3):
            raise Refused("blank-image", "all of the picture has one colour")
        columns: Row = {
            "image": {
                "address": row["picture"]["address"],
                "width": decoded.width,
                "height": decoded.height,
                "pixels": pixels,
            }
        }
        return columns if marked is None else columns | fitted(marked, decoded.width, decoded.height)

    return apply


def decode_speech(spec: DecodeSpeechSpec, preparation: Preparation) -> Apply:
    """`recordings` → `waves`: float32 samples; a record goes on without a broken recording.

    A record whose recordings are all there is to it is refused with the last of them.
    """
    from ..media import audio

    def apply(row: Row, refuse: Refuse) -> Row:
        waves: list[Row] = []
        alone = not (row.get("picture") or row.get("text"))
        for number, recording in enumerate(row["recordings"], 1):
            try:
                clip = audio.read(recording["content"], preparation.sample_rate)
            except Refused as refused:
                if alone and not waves and number == len(row["recordings"]):
                    raise
                refuse(refused, recording["address"], recording["content"])
                continue
            waves.append(
                {
                    "language": recording["language"],
                    "address": recording["address"],
                    "duration_s": clip.duration_s,
                    "wave": clip.wave,
                }
            )
        return {"waves": waves}

    return apply


DECODE_IMAGE = Operator(
    spec=DecodeImageSpec,
    summary="pictures to pixels",
    needs=lambda spec: ("picture",),
    gives=lambda spec: ("image",),
    start=decode_image,
)
DECODE_SPEECH = Operator(
    spec=DecodeSpeechSpec,
    summary="recordings to waves",
    needs=lambda spec: ("recordings",),
    gives=lambda spec: ("waves",),
    start=decode_speech,
)
