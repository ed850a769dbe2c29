"""Records of a corpus as NumPy views on mapped memory: nothing is copied until it is put into a batch."""

from __future__ import annotations

from functools import cached_property
from hashlib import sha256

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .splitting import group_of


class Chunk:
    """The records of one Arrow record batch.

    Args:
        batch: rows of a corpus; columns it lacks are as if every record lacked them.
    """

    def __init__(self, batch: pa.RecordBatch) -> None:
        self._batch = batch
        self._names = frozenset(batch.schema.names)

    def id(self, row: int) -> str:
        """Its id."""
        return self._ids[row]

    def pixels(self, row: int) -> NDArray[np.uint8] | None:
        """The stored picture, flat; None if there is none."""
        if "image" not in self._names or self._no_image[row]:
            return None
        return _bytes(self._pixels, row)

    def mask(self, row: int) -> tuple[list[str], bytes] | None:
        """What is marked in the stored picture: labels, and the PNG; None if that isn't known."""
        found = self._batch.column("mask")[row].as_py() if "mask" in self._names else None
        return None if found is None else (found["labels"], found["content"])

    def reference(self, row: int) -> bytes | None:
        """What the stored picture should look like, a PNG; None if that isn't known."""
        found = self._batch.column("reference")[row].as_py() if "reference" in self._names else None
        return None if found is None else found["content"]

    def captions(self, row: int) -> dict[str, list[int]]:
        """Language → numbers of the captions in the chunk."""
        found: dict[str, list[int]] = {}
        if "captions" in self._names:
            start, end = self._caption_ends[row : row + 2]
            for number in range(start, end):
                found.setdefault(self._caption_languages[number], []).append(number)
        return found

    def tokens(self, number: int) -> NDArray[np.int32]:
        """The tokens of a caption."""
        ends, values = self._tokens
        return values[ends[number] : ends[number + 1]]

    def document(self, row: int) -> NDArray[np.int32]:
        """The tokens of its document; none if there is none: even an empty text has its BOS."""
        if "text_tokens" not in self._names:
            return np.empty(0, np.int32)
        ends, values = self._documents
        return values[ends[row] : ends[row + 1]]

    @property
    def document_lengths(self) -> NDArray[np.int64]:
        """Tokens of each record's document; 0 where there is none, or where captions are the text."""
        if "text_tokens" not in self._names:
            return np.zeros(self._batch.num_rows, np.int64)
        lengths = np.diff(self._documents[0]).astype(np.int64)
        if "captions" in self._names:
            lengths[np.diff(self._caption_ends) > 0] = 0
        return lengths

    def answer(self, row: int) -> NDArray[np.int32]:
        """The tokens of its answer; none if it has none."""
        ends, values = self._answers
        return values[ends[row] : ends[row + 1]]

    def clips(self, row: int) -> dict[str, int]:
        """Language → number of the recording in the chunk."""
        if "speech" not in self._names:
            return {}
        start, end = self._clip_ends[row : row + 2]
        return {self._clip_languages[number]: number for number in range(start, end)}

    def mel(self, number: int) -> NDArray[np.float16]:
        """The spectrogram of a recording, flat."""
        return _bytes(self._mels, number).view(np.float16)

    def split_group(self, row: int) -> int:
        """A number below 2⁶³, equal where records belong to one group, which no two splits share."""
        return _number(self._groups[row])

    def category(self, row: int) -> str | None:
        """Its category."""
        return self._categories[row]

    def group(self, row: int, reference: str) -> int:
        """A number below 2⁶³, equal where records share the first caption in the reference language."""
        captions = [
            {"language": reference, "text": self._texts[number].as_py()}
            for number in self.captions(row).get(reference, [])[:1]
        ]
        return _number(group_of({"id": self.id(row), "captions": captions}, reference))

    @cached_property
    def _ids(self) -> list[str]:
        return self._batch.column("id").to_pylist()

    @cached_property
    def _no_image(self) -> NDArray[np.bool_]:
        return self._batch.column("image").is_null().to_numpy(zero_copy_only=False)

    @cached_property
    def _pixels(self) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        return _binary(self._batch.column("image").field("pixels"))

    @cached_property
    def _caption_ends(self) -> list[int]:
        return self._batch.column("captions").offsets.to_pylist()

    @cached_property
    def _caption_languages(self) -> list[str]:
        return self._batch.column("captions").values.field("language").to_pylist()

    @cached_property
    def _texts(self) -> pa.Array:
        return self._batch.column("captions").values.field("text")

    @cached_property
    def _tokens(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        lists = self._batch.column("tokens").values
        return lists.offsets.to_numpy(), lists.values.to_numpy()

    @cached_property
    def _documents(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        lists = self._batch.column("text_tokens")
        return lists.offsets.to_numpy(), lists.values.to_numpy()

    @cached_property
    def _answers(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        lists = self._batch.column("answer_tokens")
        return lists.offsets.to_numpy(), lists.values.to_numpy()

    @cached_property
    def _groups(self) -> list[str]:
        return self._batch.column("group").to_pylist()

    @cached_property
    def _clip_ends(self) -> list[int]:
        return self._batch.column("speech").offsets.to_pylist()

    @cached_property
    def _clip_languages(self) -> list[str]:
        return self._batch.column("speech").values.field("language").to_pylist()

    @cached_property
    def _mels(self) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        return _binary(self._batch.column("speech").values.field("mel"))

    @cached_property
    def _categories(self) -> list[str | None]:
        if "category" not in self._names:
            return [None] * self._batch.num_rows
        return self._batch.column("category").to_pylist()


def _number(key: str) -> int:
    """A number below 2⁶³ for a key."""
    return int.from_bytes(sha256(key.encode("utf-8", "surrogatepass")).digest()[:8]) >> 1


def _binary(array: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """A large_binary array as its offsets and its bytes."""
    _, offsets, content = array.buffers()
    ends = np.frombuffer(offsets, np.int64)[array.offset :]
    return ends, np.frombuffer(content, np.uint8) if content is not None else np.empty(0, np.uint8)


def _bytes(binary: tuple[NDArray[np.int64], NDArray[np.uint8]], number: int) -> NDArray[np.uint8]:
    ends, content = binary
    return content[ends[number] : ends[number + 1]]
