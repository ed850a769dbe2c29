"""Reading a corpus for training and evaluation: batches of fixed shape from rows in any order."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import ValidationError

from ..workflows.errors import EaglerayError
from .contracts import MODALITIES, pack_path
from .media import audio, image, text
from .media.masks import decode, fit
from .order import Rows, Seeds, mix
from .records import Chunk
from .shards import OPEN_BATCHES, MappedRows, open_split
from .spec import PAD, CorpusInfo, Sizes

Arrays = dict[str, NDArray[Any]]

# Each use of a row's seed draws from a stream of its own.
_CROP, _MASK, *_CHOICES = range(6)


READ_ROWS = 1024
"""Records whose chunks are looked at together."""


class CorpusReader:
    """One split of a corpus. Its memory does not grow with the corpus: shards are mapped, not read.

    Args:
        folder: the corpus's.
        split: `train`, `val` or `test`.
        marks: labels of what is marked in pictures, in the order in which they are numbered; without, marks
            aren't read.
        compares: read what pictures should look like, too; of a picture without, marks aren't known.

    Attributes:
        info: what `corpus.json` says.
        folder: the corpus's.

    Raises:
        EaglerayError: when the folder holds no corpus of this version, or has no such split.
    """

    def __init__(self, folder: Path, split: str, marks: Sequence[str] = (), compares: bool = False) -> None:
        self.info = read_info(folder)
        if split not in self.info.splits:
            raise EaglerayError(
                f"the corpus has no split {split!r}", f"known: {', '.join(self.info.splits)}", str(folder)
            )
        self.folder, self._split = folder, split
        self._marks = {name: number for number, name in enumerate(marks, 1)}
        if compares and "reference" not in self.info.columns:
            raise EaglerayError(
                "the corpus doesn't say what its pictures should look like, and the model compares them",
                "preprocess a source that gives references, or set model.vision.compares to false",
                str(folder),
            )
        self._compares = compares
        self._rows = open_split(folder, split)
        if len(self._rows) != self.info.splits[split].records:
            raise EaglerayError(
                f"the split {split} has {len(self._rows)} records, corpus.json says "
                f"{self.info.splits[split].records}",
                "run the preprocess stage again",
                str(folder),
            )
        self._labels = {name: number for number, name in enumerate(self.info.classes)}
        self._chunks: dict[int, Chunk] = {}

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def ids(self) -> Sequence[str]:
        """Of the records, in order."""
        return self._rows.column("id")["id"].to_pylist()

    def ids_of(self, rows: Rows) -> Sequence[str]:
        """Ids of rows (B,)."""
        return [chunk.id(row) for chunk, row in self._locate(rows)]

    def groups_of(self, rows: Rows) -> list[int]:
        """Numbers (B,), equal where records of these rows belong to one group, which no two splits share."""
        return [chunk.split_group(row) for chunk, row in self._locate(rows)]

    def languages(self) -> list[str | None]:
        """Of each record: of the speech that stands for it without seeds, else of its document, if known."""
        found: list[str | None] = []
        for start in range(0, len(self), READ_ROWS):
            rows = np.arange(start, min(start + READ_ROWS, len(self)))
            spoken = [self._spoken(chunk, row) for chunk, row in self._locate(rows)]
            found += [one[0] if one else None for one in spoken]
        if "language" in self.info.columns and None in found:
            written = self.table(np.arange(len(self)), ["language"])["language"].to_pylist()
            found = [one or other for one, other in zip(found, written, strict=True)]
        return found

    def stored_pictures(self, rows: Rows) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Pictures as they are stored (B, S, S, 3), zeros where there is none, and labels (B,)."""
        records = self._locate(rows)
        labels = np.array([self._label(chunk, row) for chunk, row in records], np.int64)
        return self._stored_pictures(records)[0], labels

    def table(self, rows: Rows, columns: Sequence[str]) -> pa.Table:
        """Columns of rows (B,), as they are stored."""
        return self._rows.take(rows, columns)

    @cached_property
    def chunk_starts(self) -> NDArray[np.int64]:
        """The first row of each chunk of rows that lie together, and the number of all rows."""
        return self._rows.starts

    def document_lengths(self, chunk: int) -> NDArray[np.int64]:
        """Tokens of each record's document in a chunk; 0 where there is none, or captions are the text."""
        return self._chunk(chunk).document_lengths

    @property
    def num_packs(self) -> int:
        """Sequences that the split's documents are packed into; 0 if they aren't packed."""
        return self.info.splits[self._split].packs

    def packed(self, packs: Rows) -> Arrays:
        """Read sequences of packed documents.

        Args:
            packs: numbers (B,) below `num_packs`.

        Returns:
            `tokens` (B, L) int64, L as `info.packing` has it; `segment` (B, L) int32, which piece of a
            document a token belongs to, from 1 on, for attention that stays within a document; `position`
            (B, L) int32, its place in the document. All zeros where a sequence is not full.
        """
        if self.info.packing is None:
            raise EaglerayError("the corpus's documents aren't packed", "set `packing` in its stage")
        shape = (len(packs), self.info.packing.length)
        tokens = np.full(shape, PAD, np.int64)
        segment, position = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        for i, pieces in enumerate(self._packs.take(packs, ["pieces"])["pieces"].to_pylist()):
            filled = 0
            rows = np.array([piece["row"] for piece in pieces], np.int64)
            for number, (piece, (chunk, row)) in enumerate(zip(pieces, self._locate(rows), strict=True), 1):
                document = chunk.document(row)
                start, stop = piece["start"], piece["stop"]
                place = slice(filled, filled + stop - start)
                tokens[i, place], segment[i, place] = document[start:stop], number
                position[i, place] = np.arange(start, stop)
                filled = place.stop
        return {"tokens": tokens, "segment": segment, "position": position}

    @cached_property
    def _packs(self) -> MappedRows:
        return MappedRows([pack_path(self.folder, self._split)])

    def examples(
        self,
        rows: Rows,
        seeds: Seeds | None,
        stretches: Sequence[slice] | None = None,
        *,
        sizes: Sizes | None = None,
        caption_language: str | None = None,
        transcript: bool = False,
    ) -> Arrays:
        """Read rows (B,) as a batch of fixed shape.

        Args:
            rows: positions in the split.
            seeds: of each row's augmentation and choices; None takes no augmentation, the reference
                caption and the first speech language there is.
            stretches: of the documents, by row; see below for None.
            sizes: that sequences are filled up to; None takes the longest that the preparation allows.
            caption_language: of the text; None takes the reference language (the first of
                `caption_languages`), and with seeds, half the time, the language of the speech.
            transcript: the text is the caption in the language of the speech, always, but for questions.

        Returns:
            `image` (B, 3, H, W) float32, `tokens` (B, T) int64, `token_mask` (B, T) bool,
            `mel` (B, F, M) float32, `mel_mask` (B, F) bool, `is_transcript` (B,) bool, whether the text is in
            the language of the speech, `present` (B, 3) bool in the order of `MODALITIES`, `label` (B,)
            int64 and `group` (B,) int64, equal where records share a caption.
            Where records have answers, also `answer` (B, T) int64 and `answer_mask` (B, T) bool; where the
            reader has `marks`, also `marks` (B, H, W) int64: 0 nothing, k the k-th of them, -1 not known;
            where it `compares`, also `reference` (B, 3, H, W) float32.
            What is absent is zeros; the label of a record without a category is -1. The text of a record
            without a caption is its document: the beginning, or with seeds any stretch of it.
        """
        records = self._locate(rows)
        preparation = self.info.preparation
        longest = sizes or Sizes(preparation.max_tokens, preparation.max_tokens, preparation.max_frames)
        chosen = self._chosen(records, seeds, stretches, caption_language, transcript)
        tokens, token_mask = text.pad([one.tokens.tolist() for one in chosen], longest.tokens)
        mel, mel_mask = self._speech([one.clip for one in chosen], seeds, longest.frames)
        pictures, has_picture, marked = self._pictures(records, seeds)
        present = {"image": has_picture, "text": token_mask.any(axis=1), "speech": mel_mask.any(axis=1)}
        answers: Arrays = {}
        if self._has_answers:
            found = [chunk.answer(row).tolist() for chunk, row in records]
            answers["answer"], answers["answer_mask"] = text.pad(found, longest.answer)
        return {
            **answers,
            **marked,
            "image": pictures,
            "tokens": tokens,
            "token_mask": token_mask,
            "mel": mel,
            "mel_mask": mel_mask,
            "is_transcript": np.array([one.is_transcript for one in chosen], np.bool_),
            "present": np.stack([present[modality] for modality in MODALITIES], axis=1),
            "label": np.array([self._label(chunk, row) for chunk, row in records], np.int64),
            "group": np.array([chunk.group(row, self._reference) for chunk, row in records], np.int64),
        }

    def lengths(
        self,
        rows: Rows,
        seeds: Seeds | None,
        stretches: Sequence[slice] | None = None,
        *,
        transcript: bool = False,
    ) -> list[Sizes]:
        """Lengths of what `examples` reads of rows (B,)."""
        records, preparation = self._locate(rows), self.info.preparation
        return [
            Sizes(
                len(one.tokens),
                len(chunk.answer(row)) if self._has_answers else 0,
                0 if one.clip is None else min(len(one.clip) // preparation.n_mels, preparation.max_frames),
            )
            for (chunk, row), one in zip(
                records, self._chosen(records, seeds, stretches, None, transcript), strict=True
            )
        ]

    @property
    def _has_answers(self) -> bool:
        return "answer_tokens" in self.info.columns

    @property
    def _reference(self) -> str:
        return self.info.preparation.caption_languages[0]

    def _locate(self, rows: Rows) -> list[tuple[Chunk, int]]:
        """The chunk of each row, and its place there."""
        batches, places = self._rows.locate(rows)
        return [
            (self._chunk(batch), row) for batch, row in zip(batches.tolist(), places.tolist(), strict=True)
        ]

    def _label(self, chunk: Chunk, row: int) -> int:
        category = chunk.category(row)
        return -1 if category is None else self._labels[category]

    def _chunk(self, number: int) -> Chunk:
        found = self._chunks.get(number)
        if found is None:
            found = self._chunks[number] = Chunk(self._rows.batch(number))
            if len(self._chunks) > OPEN_BATCHES:
                self._chunks.pop(next(iter(self._chunks)))
        return found

    def _chosen(
        self,
        records: Sequence[tuple[Chunk, int]],
        seeds: Seeds | None,
        stretches: Sequence[slice] | None,
        caption_language: str | None,
        transcript: bool,
    ) -> list[_Chosen]:
        """What of each record stands for it."""
        found: list[_Chosen] = []
        for i, ((chunk, row), draws) in enumerate(zip(records, _draws(len(records), seeds), strict=True)):
            clip, caption, is_transcript = self._choose(chunk, row, draws, caption_language, transcript)
            if caption is not None:
                said = chunk.tokens(caption)
            elif stretches is None:
                said = self._document(chunk, row, draws)
            else:
                said = chunk.document(row)[stretches[i]]
            found.append(_Chosen(said, None if clip is None else chunk.mel(clip), is_transcript))
        return found

    def _choose(
        self,
        chunk: Chunk,
        row: int,
        draws: Sequence[float] | None,
        caption_language: str | None,
        transcript: bool,
    ) -> tuple[int | None, int | None, bool]:
        """Which clip and which caption stand for a record, as numbers in its chunk; None if it has none.

        And whether both are in one language.
        """
        captions, clips, spoken = chunk.captions(row), chunk.clips(row), self._spoken(chunk, row)
        language = spoken[int(draws[0] * len(spoken)) if draws else 0] if spoken else None
        clip = None if language is None else clips[language]
        asks = self._has_answers and len(chunk.answer(row)) > 0
        wanted = language if transcript and not asks else caption_language or self._reference
        if not transcript and caption_language is None and draws and draws[1] < 0.5 and language in captions:
            wanted = language
        said = captions.get(wanted or "", [])
        if not said:
            return clip, None, False
        return clip, said[int(draws[2] * len(said)) if draws else 0], wanted == language

    def _spoken(self, chunk: Chunk, row: int) -> list[str]:
        """Languages that a record is spoken in; only those of the preparation, where it has any of them."""
        clips = chunk.clips(row)
        return [one for one in self.info.preparation.speech_languages if one in clips] or sorted(clips)

    def _document(self, chunk: Chunk, row: int, draws: Sequence[float] | None) -> NDArray[np.int32]:
        """Tokens of the record's document, no more than the text may have; none if it has no document."""
        tokens = chunk.document(row)
        size = self.info.preparation.max_tokens
        start = int(draws[3] * (max(0, len(tokens) - size) + 1)) if draws else 0
        return tokens[start : start + size]

    def _pictures(
        self, records: Sequence[tuple[Chunk, int]], seeds: Seeds | None
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_], Arrays]:
        """(B, 3, H, W), augmented if there are seeds, zeros where there is none, which are real (B,), and
        what goes with what is marked in them: `marks` (B, H, W) and `reference` (B, 3, H, W), if they are
        read.
        """
        size = self.info.preparation.image_size
        pixels, real = self._stored_pictures(records)
        if not self._marks:
            pixels = (
                image.center(pixels, size)
                if seeds is None
                else image.augment(pixels, mix(seeds, _CROP), size)
            )
            pictures = image.normalise(pixels)
            pictures[~real] = 0
            return pictures, real, {}
        masks, known = self._masks(records)
        if self._compares:
            references, compared = self._references(records)
            pixels, known = np.concatenate((pixels, references), axis=-1), known & compared
        if seeds is None:
            pixels = image.center(pixels, size)
            masks = np.stack([fit(mask, size) for mask in masks])
        else:
            pixels, masks = image.augment_marked(pixels, masks, mix(seeds, _CROP), size)
        marks = masks.astype(np.int64)
        marks[~(known & real)] = -1
        pictures = image.normalise(pixels)
        pictures[~real] = 0
        if not self._compares:
            return pictures, real, {"marks": marks}
        reference = np.ascontiguousarray(pictures[:, 3:])
        reference[~known] = 0
        return np.ascontiguousarray(pictures[:, :3]), real, {"marks": marks, "reference": reference}

    def _references(
        self, records: Sequence[tuple[Chunk, int]]
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """What pictures should look like (B, S, S, 3), and where that is known (B,)."""
        stored = self.info.preparation.stored_image_size
        pixels = np.zeros((len(records), stored, stored, 3), np.uint8)
        known = np.zeros(len(records), np.bool_)
        for i, (chunk, row) in enumerate(records):
            found = chunk.reference(row)
            if found is not None:
                pixels[i], known[i] = image.decode(found, stored), True
        return pixels, known

    def _masks(self, records: Sequence[tuple[Chunk, int]]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """What is marked (B, S, S), and where that is known (B,)."""
        stored = self.info.preparation.stored_image_size
        masks = np.zeros((len(records), stored, stored), np.uint8)
        known = np.zeros(len(records), np.bool_)
        for i, (chunk, row) in enumerate(records):
            found = chunk.mask(row)
            if found is not None:
                labels, content = found
                numbers = np.array([0, *(self._marks.get(label, 0) for label in labels)], np.uint8)
                masks[i], known[i] = numbers[decode(content)], True
        return masks, known

    def _stored_pictures(
        self, records: Sequence[tuple[Chunk, int]]
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """(B, S, S, 3) and which are real (B,); zeros where there is none."""
        stored = self.info.preparation.stored_image_size
        pixels = np.empty((len(records), stored * stored * 3), np.uint8)
        real = np.ones(len(records), np.bool_)
        for i, (chunk, row) in enumerate(records):
            picture = chunk.pixels(row)
            if picture is None:
                pixels[i], real[i] = 0, False
            else:
                pixels[i] = picture
        return pixels.reshape(len(records), stored, stored, 3), real

    def _speech(
        self, clips: Sequence[NDArray[np.float16] | None], seeds: Seeds | None, num_frames: int
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(B, F, M) normalised and (B, F), bands masked if there are seeds; zeros where there is no clip."""
        preparation = self.info.preparation
        mel = np.zeros((len(clips), num_frames, preparation.n_mels), np.float32)
        mask = np.zeros(mel.shape[:2], np.bool_)
        masking = None if seeds is None else mix(seeds, _MASK).tolist()
        for i, clip in enumerate(clips):
            if clip is None:
                continue
            spectrum = audio.normalise(clip.reshape(-1, preparation.n_mels).astype(np.float32))
            if masking is not None:
                spectrum = audio.mask_bands(spectrum, len(spectrum), masking[i])
            mel[i], mask[i] = audio.pad(spectrum, num_frames)
        return mel, mask


class _Chosen(NamedTuple):
    """What of a record stands for it: tokens of its text, none if it has none, and its recording."""

    tokens: NDArray[np.int32]
    clip: NDArray[np.float16] | None
    is_transcript: bool


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


def _draws(num_rows: int, seeds: Seeds | None) -> Sequence[Sequence[float] | None]:
    """For each row four numbers in [0, 1): for the speech's language, the text's, which caption, and which
    stretch of a document.
    """
    if seeds is None:
        return [None] * num_rows
    return list(zip(*((mix(seeds, stream) / 2.0**64).tolist() for stream in _CHOICES), strict=True))
