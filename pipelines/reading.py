"""Reading a corpus for training: a deterministic, elastic order, and batches of fixed shape."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from ..workflows.errors import EaglerayError
from .contracts import MODALITIES, TABLES, shard_paths
from .operators import audio, image, text
from .spec import CorpusInfo

Rows = NDArray[np.int64]
Seeds = NDArray[np.uint64]
Arrays = dict[str, NDArray[Any]]

# Each use of a row's seed draws from a stream of its own.
_LANGUAGE, _TEXT, _CROP, _MASK = range(4)


def training_rows(seed: int, num_records: int, batch_size: int, step: int) -> tuple[Rows, Seeds]:
    """The rows (batch_size,) of a training step, and a seed (batch_size,) for each.

    A pure function, so any number of workers can take slices of it, and training resumes at any
    step. Epochs are permutations, laid end to end without a gap: a batch may straddle two.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
    epochs = positions // num_records
    rows = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        rows[here] = _permutation(seed, int(epoch), num_records)[positions[here] % num_records]
    return rows, _mix(_mix(np.uint64(seed), epochs), rows)


class CorpusReader:
    """One split of a corpus.

    Args:
        folder: the corpus's.
        split: `train`, `val` or `test`.

    Attributes:
        info: what `corpus.json` says.
        ids: of the pictures, sorted.

    Raises:
        EaglerayError: when the folder holds no corpus of this version, or has no such split.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.info = read_info(folder)
        if split not in self.info.splits:
            raise EaglerayError(
                f"the corpus has no split {split!r}", f"known: {', '.join(self.info.splits)}", str(folder)
            )
        pictures = _read(folder, "pictures", split)
        self.ids: Sequence[str] = pictures["id"].to_pylist()
        self._images = pictures["image"]
        self._labels = pictures["label"].to_numpy().astype(np.int64)
        self._groups = pictures["caption_group"].to_numpy().astype(np.int64)
        row_of = {record: row for row, record in enumerate(self.ids)}

        captions = _read(folder, "captions", split)
        self._tokens = captions["tokens"]
        self._captions: list[dict[str, int]] = [{} for _ in self.ids]
        for position, (record, language) in enumerate(_keys(captions)):
            self._captions[row_of[record]][language] = position

        speech = _read(folder, "speech", split)
        self._mels = speech["mel"]
        self._clips: list[dict[str, int]] = [{} for _ in self.ids]
        for position, (record, language) in enumerate(_keys(speech)):
            self._clips[row_of[record]][language] = position

    def __len__(self) -> int:
        return len(self.ids)

    def examples(
        self,
        rows: Rows,
        seeds: Seeds | None,
        *,
        caption_language: str | None = None,
        transcript: bool = False,
    ) -> Arrays:
        """Read rows (B,) as a batch of fixed shape.

        Args:
            rows: positions in the split.
            seeds: of each row's augmentation and choices; None takes no augmentation, the reference
                caption and the first speech language there is.
            caption_language: of the text; None takes the reference language (the first of
                `caption_languages`), and with seeds, half the time, the language of the speech.
            transcript: the text is the caption in the language of the speech, always.

        Returns:
            `image` (B, 3, H, W) float32, `tokens` (B, T) int64, `token_mask` (B, T) bool,
            `mel` (B, F, M) float32, `mel_mask` (B, F) bool, `present` (B, 3) bool in the order of
            `MODALITIES`, `label` (B,) int64 and `group` (B,) int64. What is absent is zeros.
        """
        chosen = [
            self._choose(row, draws, caption_language, transcript) for row, draws in _draws(rows, seeds)
        ]
        clips = [clip for clip, _ in chosen]
        tokens, token_mask = text.pad(
            [[] if caption is None else self._tokens[caption].as_py() for _, caption in chosen],
            self.info.preparation.max_tokens,
        )
        mel, mel_mask = self._speech(clips, seeds)
        everyone = np.ones(len(rows), np.bool_)
        present = {"image": everyone, "text": token_mask.any(axis=1), "speech": mel_mask.any(axis=1)}
        return {
            "image": self._pictures(rows, seeds),
            "tokens": tokens,
            "token_mask": token_mask,
            "mel": mel,
            "mel_mask": mel_mask,
            "present": np.stack([present[modality] for modality in MODALITIES], axis=1),
            "label": self._labels[rows],
            "group": self._groups[rows],
        }

    def _choose(
        self, row: int, draws: tuple[float, float] | None, caption_language: str | None, transcript: bool
    ) -> tuple[int | None, int | None]:
        """Which clip and which caption stand for a row, as positions in their tables; None if it has none."""
        captions, clips = self._captions[row], self._clips[row]
        spoken = [one for one in self.info.preparation.speech_languages if one in clips]
        language = spoken[int(draws[0] * len(spoken)) if draws else 0] if spoken else None
        clip = None if language is None else clips[language]
        if transcript:
            return clip, None if language is None else captions.get(language)
        reference = self.info.preparation.caption_languages[0]
        if caption_language is None and draws and draws[1] < 0.5 and language in captions:
            return clip, captions[language]
        return clip, captions.get(caption_language or reference)

    def _pictures(self, rows: Rows, seeds: Seeds | None) -> NDArray[np.float32]:
        """(B, 3, H, W), augmented if there are seeds."""
        stored = self.info.preparation.stored_image_size
        pixels = np.empty((len(rows), stored, stored, 3), np.uint8)
        for i, row in enumerate(rows.tolist()):
            pixels[i] = np.frombuffer(self._images[row].as_buffer(), np.uint8).reshape(pixels[i].shape)
        size = self.info.preparation.image_size
        if seeds is None:
            return image.normalise(image.center(pixels, size))
        return image.normalise(image.augment(pixels, _mix(seeds, _CROP), size))

    def _speech(
        self, clips: Sequence[int | None], seeds: Seeds | None
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(B, F, M) normalised and (B, F), bands masked if there are seeds; zeros where there is no clip."""
        preparation = self.info.preparation
        mel = np.zeros((len(clips), preparation.max_frames, preparation.n_mels), np.float32)
        mask = np.zeros(mel.shape[:2], np.bool_)
        masking = None if seeds is None else _mix(seeds, _MASK).tolist()
        for i, clip in enumerate(clips):
            if clip is None:
                continue
            levels = np.frombuffer(self._mels[clip].as_buffer(), np.float16).reshape(-1, preparation.n_mels)
            spectrum = audio.normalise(levels.astype(np.float32))
            if masking is not None:
                spectrum = audio.mask_bands(spectrum, len(spectrum), masking[i])
            mel[i], mask[i] = audio.pad(spectrum, preparation.max_frames)
        return mel, mask


def read_info(folder: Path) -> CorpusInfo:
    """What a corpus says about itself.

    Raises:
        EaglerayError: when the folder holds no corpus of this version.
    """
    try:
        return CorpusInfo.model_validate_json((folder / "corpus.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise EaglerayError(
            "the folder holds no corpus that this version can read",
            "name the folder of an artifact that a preprocess stage made",
            str(folder),
        ) from error


def _read(folder: Path, table: str, split: str) -> pa.Table:
    """All shards of a table, each column in one piece."""
    shards = [pq.read_table(path, schema=TABLES[table]) for path in shard_paths(folder, table, split)]
    if not shards:
        raise EaglerayError(
            f"the corpus has no {table} of {split}", "run the preprocess stage again", str(folder)
        )
    return pa.concat_tables(shards).combine_chunks()


def _keys(table: pa.Table) -> list[tuple[str, str]]:
    return list(zip(table["id"].to_pylist(), table["language"].to_pylist(), strict=True))


def _draws(rows: Rows, seeds: Seeds | None) -> list[tuple[int, tuple[float, float] | None]]:
    """Each row with two numbers in [0, 1) of its seed: for the speech's language, and for the text's."""
    if seeds is None:
        return [(row, None) for row in rows.tolist()]
    first, second = ((_mix(seeds, stream) / 2.0**64).tolist() for stream in (_LANGUAGE, _TEXT))
    return [(row, pair) for row, pair in zip(rows.tolist(), zip(first, second, strict=True), strict=True)]


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, num_records: int) -> Rows:
    order = np.random.default_rng([seed, epoch]).permutation(num_records).astype(np.int64)
    order.flags.writeable = False
    return order


def _mix(seeds: Seeds | np.uint64, values: Rows | int) -> Seeds:
    """Hash seeds with values, elementwise: SplitMix64's finaliser (Steele et al. 2014, figure 11)."""
    with np.errstate(over="ignore"):
        mixed = seeds + (np.asarray(values).astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))
