"""Reading checkpoints that anyone may have made: PyTorch keeps their table of contents as a pickle.

`torch.distributed.checkpoint` unpickles that table, and whatever is no tensor, as it comes, which runs the
code that is in there. Here only the classes that a table is made of are known, and the rest must be plain.
"""

from __future__ import annotations

import importlib
import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint import load as dcp_load
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem

from ...workflows.errors import EaglerayError

_REMEDY = "use a checkpoint of someone you know, or make it again"
_DCP = "torch.distributed.checkpoint"
KNOWN = frozenset(
    {
        (f"{_DCP}.metadata", "BytesStorageMetadata"),
        (f"{_DCP}.metadata", "ChunkStorageMetadata"),
        (f"{_DCP}.metadata", "Metadata"),
        (f"{_DCP}.metadata", "MetadataIndex"),
        (f"{_DCP}.metadata", "StorageMeta"),
        (f"{_DCP}.metadata", "TensorProperties"),
        (f"{_DCP}.metadata", "TensorStorageMetadata"),
        (f"{_DCP}.metadata", "_MEM_FORMAT_ENCODING"),
        (f"{_DCP}.filesystem", "_StorageInfo"),
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
        ("collections", "OrderedDict"),
        ("pathlib", "PosixPath"),
        ("pathlib._local", "PosixPath"),  # as Python 3.13 writes it
    }
)
"""Module and name of all that a table of contents is made of, beside numbers, texts and PyTorch's dtypes."""


class _TableUnpickler(pickle.Unpickler):
    """Knows a table's classes and PyTorch's dtypes; the name of anything else ends it."""

    def find_class(self, module: str, name: str, /) -> Any:  # noqa: ANN401 - whatever is known
        """A class by its name, if a table may have it."""
        if (module, name) in KNOWN or (
            module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        ):
            return getattr(importlib.import_module(module), name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint")


class _Reader(FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # noqa: ANN401 - PyTorch's
        """Read the table of contents."""
        path = Path(str(self._get_metadata_path(kwargs.get("rank"))))
        try:
            metadata = _TableUnpickler(io.BytesIO(path.read_bytes())).load()
            if not isinstance(metadata, Metadata):
                raise pickle.UnpicklingError("it holds something else")
        except OSError:
            raise
        except Exception as error:  # a damaged pickle raises anything
            raise EaglerayError(
                f"the checkpoint's table of contents can't be trusted: {error}",
                _REMEDY,
                str(path),
            ) from None
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Planner(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Take what is no tensor, if it is plain."""
        torch.load(value, weights_only=True)
        value.seek(0)
        super().load_bytes(read_item, value)


def read_table(folder: Path) -> Metadata:
    """A checkpoint's table of contents.

    Raises:
        EaglerayError: when it has anything else in it.
    """
    return _Reader(folder).read_metadata()


def load_tensors(state: dict[str, Any], folder: Path, *, no_dist: bool = False) -> None:
    """Read a checkpoint into `state`, in place, as `torch.distributed.checkpoint.load` does.

    Raises:
        EaglerayError: when it holds more than tensors and plain values.
    """
    read_table(folder)  # what is wrong with it, PyTorch wraps
    try:
        dcp_load(state, storage_reader=_Reader(folder), planner=_Planner(), no_dist=no_dist)
    except CheckpointException as error:
        if any(isinstance(cause, pickle.UnpicklingError) for cause, _ in error.failures.values()):
            raise EaglerayError(
                "the checkpoint holds more than tensors and plain values", _REMEDY, str(folder)
            ) from None
        raise
