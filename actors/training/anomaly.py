"""An anomaly detector fitted to normal pictures alone, and what becomes of it as an artifact.

An `AnomalyModel` artifact has `anomaly.safetensors`, the density's parameters, and `anomaly.json`; features
are those of the checkpoint that it was fitted on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from ...models.anomaly import AnomalyDetector, PatchFeatures
from ...models.multimodal import MultimodalModel
from ...pipelines.media import masks
from ...pipelines.reading import CorpusReader
from ...workflows.errors import EaglerayError
from . import mixture
from .anomaly_spec import AnomalyInfo, AnomalySpec
from .metrics import Numbers, Progress
from .mixture import Mixture
from .threshold import TooFewError, threshold

WEIGHTS, INFO = "anomaly.safetensors", "anomaly.json"
FEATURES = "features.npy"
CHUNK = 8192
"""Patches that are in memory together while the mixture is fitted."""
SAMPLE = 8192
"""Patches that it starts from."""
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Marked:
    """What is marked in a picture.

    Attributes:
        mask: (S, S) 0 where it is normal, n where it is `labels[n - 1]`.
        labels: of what may be marked.
    """

    mask: NDArray[np.uint8]
    labels: tuple[str, ...]


def marks_of(reader: CorpusReader, rows: Rows) -> list[Marked | None]:
    """What is marked in pictures (B,) as models see them; None where that isn't known.

    Raises:
        EaglerayError: when the corpus doesn't know of any.
    """
    if "mask" not in reader.info.columns:
        raise EaglerayError(
            "the corpus has no masks: which of its pictures are normal isn't known",
            "take a source with masks, such as mvtec-ad, deeppcb or circuit-boards",
        )
    size = reader.info.preparation.image_size
    found = reader.table(rows, ["mask"])["mask"].to_pylist()
    return [
        None if one is None else Marked(masks.fit(masks.decode(one["content"]), size), tuple(one["labels"]))
        for one in found
    ]


def normal_rows(reader: CorpusReader, batch_rows: int) -> Rows:
    """Rows of pictures that are known to have nothing marked."""
    every = np.arange(len(reader))
    parts = (every[start : start + batch_rows] for start in range(0, len(every), batch_rows))
    known = [one is not None and not one.mask.any() for rows in parts for one in marks_of(reader, rows)]
    return every[np.array(known, np.bool_)]


def held_out(groups: Sequence[int], share: float, seed: int) -> NDArray[np.bool_]:
    """Which pictures (N,) a threshold is set on: whole groups, or single pictures where all are of one.

    Args:
        groups: (N,) of the pictures.
        share: of the groups; of two, one is held out at least.
        seed: of the lot.
    """
    random = np.random.default_rng(seed)
    of = np.asarray(groups)
    if (names := np.unique(of)).size == 1:
        return random.permutation(len(of)) < round(share * len(of))
    count = min(max(1, round(share * names.size)), names.size - 1)
    return np.isin(of, random.permutation(names)[:count])


def build(model: MultimodalModel, spec: AnomalySpec) -> AnomalyDetector:
    """A detector that knows nothing yet."""
    features = PatchFeatures(model.vision if spec.encoder else None, spec.filters_px, spec.stride)
    return AnomalyDetector(features, spec.components).eval()


def fit_detector(
    model: MultimodalModel,
    reader: CorpusReader,
    spec: AnomalySpec,
    scratch: Path,
    checkpoint: str,
    progress: Progress,
    where: str,
) -> tuple[AnomalyDetector, AnomalyInfo]:
    """Fit a detector to the normal pictures of a split, and set its threshold on some that were held out.

    Features of patches that are drawn by lot go to a file once, and passes read them from there: memory
    doesn't grow with the corpus.

    Args:
        model: whose encoder gives features.
        reader: of the split.
        spec: how.
        scratch: folder for the features.
        checkpoint: digest of the model's.
        progress: told passes done and all.
        where: stage, for what it says.

    Raises:
        EaglerayError: when there are too few normal pictures.
    """
    detector = build(model, spec)
    rows = normal_rows(reader, spec.batch_rows)
    is_held_out = (
        held_out(reader.groups_of(rows), spec.held_out, spec.seed) if len(rows) else np.zeros(0, np.bool_)
    )
    fitted, judged = (_drawn(rows[some], spec) for some in (~is_held_out, is_held_out))
    if not len(fitted):
        raise EaglerayError(
            "the corpus's train split has no normal pictures to fit to", "give it some without marks", where
        )
    spooled = spool(detector.features, reader, fitted, spec, scratch / FEATURES)
    shift, scale = moments(spooled)
    try:
        start = mixture.seeded(
            _standard(spooled[:: max(1, len(spooled) // SAMPLE)], shift, scale),
            spec.components,
            spec.seed,
            spec.covariance,
            spec.regularisation,
        )
    except ValueError as error:
        raise EaglerayError(
            f"too few normal patches: {error}", "set fewer components, or give it more pictures", where
        ) from None
    found = mixture.fit(
        lambda: (_standard(x, shift, scale) for x in _chunks(spooled)),
        start,
        spec.passes,
        spec.covariance,
        spec.regularisation,
        progress,
    )
    _set(detector, shift, scale, found.mixture)
    highest = highest_scores(detector, reader, judged, spec.batch_rows)
    try:
        detector.threshold.fill_(threshold(highest, spec.false_alarms, spec.rule))
    except TooFewError as error:
        raise EaglerayError(
            f"{len(highest)} normal pictures are held out; for a share of {spec.false_alarms:g} false alarms "
            f"{spec.rule} takes {error.needed}",
            "allow more false alarms, hold out more (held_out), or give it more normal pictures",
            where,
        ) from None
    detector.spread.fill_(max(float(highest.std()), 1e-6))
    return detector, AnomalyInfo(
        spec=spec,
        checkpoint=checkpoint,
        pictures=len(fitted),
        patches=len(spooled),
        held_out=len(judged),
        log_likelihoods=found.log_likelihoods,
        threshold=float(detector.threshold),
        spread=float(detector.spread),
    )


def spool(
    features: PatchFeatures, reader: CorpusReader, rows: Rows, spec: AnomalySpec, path: Path
) -> NDArray[np.float32]:
    """Write features (N, D) of patches, drawn by lot from each picture, to a file and map it."""
    side = -(-reader.info.preparation.image_size // spec.stride)
    each = min(spec.patches_per_picture, side**2)
    found = np.lib.format.open_memmap(path, "w+", np.float32, (len(rows) * each, features.width))
    for start, images in _pictures(reader, rows, spec.batch_rows):
        with torch.inference_mode():
            grid = features(images).flatten(2).transpose(1, 2).numpy()
        for place, (row, patches) in enumerate(zip(rows[start:], grid, strict=False), start):
            lot = np.random.default_rng((spec.seed, int(row))).permutation(side**2)[:each]
            found[place * each : (place + 1) * each] = patches[lot]
    return found


def moments(features: NDArray[np.float32]) -> tuple[Numbers, Numbers]:
    """Mean and deviation (D,) of features (N, D); of one that doesn't vary, 1."""
    first = sum(x.sum(axis=0, dtype=np.float64) for x in _chunks(features)) / len(features)
    squares = sum(np.square(x.astype(np.float64) - first).sum(axis=0) for x in _chunks(features))
    deviation = np.sqrt(squares / len(features))
    return np.asarray(first), np.where(deviation > 1e-6, deviation, 1.0)


def highest_scores(detector: AnomalyDetector, reader: CorpusReader, rows: Rows, batch_rows: int) -> Numbers:
    """The greatest score (B,) in each picture, nats."""
    found: list[Numbers] = []
    for _, images in _pictures(reader, rows, batch_rows):
        with torch.inference_mode():
            found.append(detector(images).flatten(1).amax(dim=1).double().numpy())
    return np.concatenate([np.zeros(0), *found])


def write(folder: Path, detector: AnomalyDetector, info: AnomalyInfo) -> None:
    """Write an `AnomalyModel` artifact's content."""
    save_file(_own(detector), folder / WEIGHTS)
    (folder / INFO).write_text(info.model_dump_json(indent=2), encoding="utf-8")


def read(
    folder: Path, model: MultimodalModel, checkpoint: str, where: str
) -> tuple[AnomalyDetector, AnomalyInfo]:
    """Read what `write` wrote.

    Args:
        folder: of the artifact.
        model: of the checkpoint.
        checkpoint: its digest.
        where: stage, for what it says.

    Raises:
        EaglerayError: when it was fitted on another checkpoint's features.
    """
    info = AnomalyInfo.model_validate_json((folder / INFO).read_bytes())
    if info.checkpoint != checkpoint:
        raise EaglerayError(
            f"the anomaly model was fitted to features of checkpoint {info.checkpoint[:12]}, not of "
            f"{checkpoint[:12]}",
            "give both stages the same checkpoint",
            where,
        )
    detector = build(model, info.spec)
    for name, tensor in load_file(folder / WEIGHTS).items():
        detector.get_buffer(name).copy_(tensor)
    return detector, info


def _own(detector: AnomalyDetector) -> dict[str, torch.Tensor]:
    """What was fitted; filters are fixed, and the encoder is the checkpoint's."""
    return {
        name: tensor.contiguous()
        for name, tensor in detector.state_dict().items()
        if not name.startswith("features.")
    }


def _set(detector: AnomalyDetector, shift: Numbers, scale: Numbers, found: Mixture) -> None:
    arrays = (shift, scale, found.weights, found.means, found.covariances)
    detector.density.set_(*(torch.from_numpy(np.ascontiguousarray(one)) for one in arrays))


def _standard(x: NDArray[np.float32], shift: Numbers, scale: Numbers) -> Numbers:
    return (x.astype(np.float64) - shift) / scale


def _chunks(features: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    return (features[start : start + CHUNK] for start in range(0, len(features), CHUNK))


def _drawn(rows: Rows, spec: AnomalySpec) -> Rows:
    """No more than `max_pictures` of them, drawn by lot, in order."""
    return np.sort(np.random.default_rng(spec.seed).permutation(rows)[: spec.max_pictures])


def _pictures(reader: CorpusReader, rows: Rows, batch_rows: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Number of the first, and pictures (B, 3, S, S)."""
    for start in range(0, len(rows), batch_rows):
        yield start, torch.from_numpy(reader.examples(rows[start : start + batch_rows], None)["image"])
