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
    """`picture` → `image`, and `mask` and `reference` to its size where there are any.

    A picture of one colour is refused, and so is a reference of another size than the picture.
    """
    from ..media import image, masks

    side = preparation.stored_image_size

    def fitted(name: str, given: Row, width: int, height: int) -> Row:
        """The columns of a mask or a reference; what cuts the picture itself needs the one of its size."""
        if name == "mask":
            content = masks.encode(masks.fit(masks.read(given, width, height), side, preparation.fit))
        else:
            decoded = image.read(given["content"], side, preparation.fit)
            image.check_alike(decoded.width, decoded.height, width, height)
            content = image.encode(decoded.pixels)
        return {name: {**given, "content": content}, f"source_{name}": given}

    def apply(row: Row, refuse: Refuse) -> Row | None:
        beside = [name for name in ("mask", "reference") if row.get(name) is not None]
        if row["picture"] is None:
            return dict.fromkeys(("image", *beside))
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
        for name in beside:
            columns |= fitted(name, row[name], decoded.width, decoded.height)
        return columns

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
