"""Leaving out captions that don't say what their picture shows, as a trained model sees it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ..operator import Apply, Operator, OperatorSpec
from ..quarantine import Refuse, Refused
from ..source import Row
from ..spec import Preparation

if TYPE_CHECKING:
    from ..bundle import LoadedBundle


class CaptionSimilaritySpec(OperatorSpec):
    """Leave out captions whose embedding is far from their picture's (Schuhmann et al. 2021, section 3).

    The stage's input `bundle` is the model: what `export` made of an earlier training.
    """

    kind: Literal["caption-similarity"] = "caption-similarity"
    min_similarity: float = Field(default=0.2, ge=-1, le=1)
    """Least cosine of a caption's embedding with the picture's; what is right depends on the model, and the
    column `caption_similarity` of a corpus made with -1 shows it."""


def caption_similarity(spec: CaptionSimilaritySpec, preparation: Preparation, bundle: Path) -> Apply:
    """`captions` without those that are far from `picture`; the record's best is in `caption_similarity`.

    Captions in languages that the model never read stay. A record none of whose captions is left goes.
    """
    import numpy as np

    model = _model(bundle)
    languages = model.info.preparation.languages

    def apply(row: Row, refuse: Refuse) -> Row | None:
        judged = [one for one in row["captions"] if one["language"] in languages]
        if row["picture"] is None or not judged:
            return {"caption_similarity": None}
        (picture,) = model.embed("image", [model.prepare_image(row["picture"]["content"])])
        texts = model.embed("text", [model.prepare_text(one["text"]) for one in judged])
        similarities: list[float] = (texts @ picture).tolist()
        far: list[Row] = []
        for caption, similarity in zip(judged, similarities, strict=True):
            if similarity < spec.min_similarity:
                message = (
                    f"{caption['text'][:100]!r} has a cosine of {similarity:.3f} with the picture, "
                    f"at least {spec.min_similarity:g}"
                )
                refused = Refused("caption-unlike-picture", message, wanted=True)
                if len(far) == len(row["captions"]) - 1:
                    raise refused
                far.append(caption)
                refuse(refused, row["picture"]["address"])
        kept = [one for one in row["captions"] if not any(one is other for other in far)]
        return {"captions": kept, "caption_similarity": float(np.float32(max(similarities)))}

    return apply


@lru_cache(maxsize=1)
def _model(bundle: Path) -> LoadedBundle:
    """The model, verified and loaded once in a process: tasks follow each other there."""
    from ..bundle import load_bundle

    return load_bundle(bundle)


SIMILARITY = Operator(
    spec=CaptionSimilaritySpec,
    summary="leave out captions that a trained model finds unlike their picture",
    needs=lambda spec: ("picture", "captions"),
    gives=lambda spec: ("captions",),
    own=lambda spec: {"caption_similarity": "float32"},
    start=caption_similarity,
    asks_model=True,
)
