"""What a bundle said of its sample when it was exported, and whether it says so still: on another machine,
whose processor has other instructions, or with another ONNX Runtime.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from ...workflows.errors import EaglerayError
from ...workflows.spec import Spec
from ..bundle import SAMPLE, BundleInfo, LoadedBundle
from ..media.image import whole
from ..spec import Form
from .pictures import PictureAssessor
from .windows import Floats

ANSWERS = "answers.json"
"""File of what was said, by form; a bundle that doesn't assess pictures is without."""
SINGLE = "float32"
TOLERANCE = 0.02
"""Of a probability. Eight bits may differ by how products saturate on a processor."""


class Answer(Spec):
    """Probabilities over all pixels of the sample, for each finding and for anything that isn't normal."""

    mean: tuple[float, ...]
    greatest: tuple[float, ...]


_Answers = TypeAdapter(Mapping[str, Answer])


def answer_of(bundle: LoadedBundle) -> Answer:
    """What a bundle says of its sample; whether the picture is a good one is not asked."""
    seen = {name: whole(base64.b64decode(told)) for name, told in bundle.sample[1].items()}
    assessor = PictureAssessor(bundle, checks=())
    told: list[Floats] = []
    if bundle.info.marking is not None:
        told.append(assessor.probabilities(seen["image"], seen.get("reference")))
    if bundle.info.anomaly is not None:
        told.append(assessor.scores(seen["image"]))
    flat = np.concatenate(told).reshape(sum(map(len, told)), -1)
    return Answer(mean=tuple(flat.mean(axis=1).tolist()), greatest=tuple(flat.max(axis=1).tolist()))


def write_answers(folder: Path, info: BundleInfo, forms: Sequence[Form]) -> None:
    """Write what a bundle that is not sealed yet says in single precision, and in other forms."""
    found = {form or SINGLE: answer_of(LoadedBundle(folder, info, form)) for form in (None, *forms)}
    (folder / ANSWERS).write_text(json.dumps({form: one.model_dump() for form, one in found.items()}))


def check_answer(bundle: LoadedBundle) -> None:
    """Hold what a bundle says of its sample to what it said.

    Raises:
        EaglerayError: when it says something else, or what it said isn't known.
    """
    if ANSWERS not in bundle.info.files or SAMPLE not in bundle.info.files:
        raise EaglerayError(
            "the bundle has no recorded answer to be tried with", "export it with this version of eagleray"
        )
    recorded = _Answers.validate_json(bundle.file(ANSWERS))[bundle.form or SINGLE]
    found = answer_of(bundle)
    for name in ("mean", "greatest"):
        ours, theirs = np.array(getattr(found, name)), np.array(getattr(recorded, name))
        off = float(np.nan_to_num(np.abs(ours - theirs), nan=np.inf).max())
        if off > TOLERANCE:
            raise EaglerayError(
                "the bundle says something else of its sample than when it was exported: a probability is "
                f"off by {off:.2g}",
                "run it in single precision, or export it on a machine like this one",
            )
