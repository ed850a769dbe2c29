"""A bundle: the folder that serving loads. Three ONNX graphs, a tokenizer, an index, and `bundle.json`.

`bundle.json` is written last and holds the sha256 of every other file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError
from tokenizers import Tokenizer

from ..workflows.errors import EaglerayError
from ..workflows.spec import Spec
from .media import audio, image, text
from .spec import Preparation

Modality: TypeAlias = Literal["image", "text", "speech"]
Arrays: TypeAlias = Mapping[str, NDArray[Any]]

GRAPH_INPUTS: Mapping[Modality, tuple[str, ...]] = {
    "image": ("image",),
    "text": ("tokens", "token_mask"),
    "speech": ("mel", "mel_mask"),
}
"""Modality → the names of its graph's inputs."""

EMBEDDING = "unit_embedding"
"""First output of every graph; the exporter itself names values `embedding`, and they would clash."""

INDEX_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("caption", pa.string()),
        ("category", pa.string()),
        ("path", pa.string()),
        ("embedding", pa.list_(pa.float32())),
    ]
)


class TensorSignature(Spec):
    """Name, element type and shape of a graph's input or output; a string is a free dimension."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class GraphSignature(Spec):
    """What a graph takes and gives, and how far it was from torch on rows of the corpus."""

    inputs: tuple[TensorSignature, ...]
    outputs: tuple[TensorSignature, ...]
    rows_checked: int
    max_difference: float
    """Largest |onnx - torch| of any output."""


class Lineage(Spec):
    """Where a bundle came from."""

    run_id: str
    checkpoint: str
    """Digest of the checkpoint."""
    corpus: str
    """Digest of the corpus whose pictures are indexed."""


class BundleInfo(Spec):
    """What `bundle.json` holds."""

    schema_version: Literal[1] = 1
    embed_dim: int
    classes: tuple[str, ...]
    preparation: Preparation
    graphs: Mapping[Modality, GraphSignature]
    lineage: Lineage
    files: Mapping[str, str]
    """File name → sha256, hex."""


@dataclass(frozen=True)
class Hit:
    """A picture found by a search; score is the cosine of its embedding with the query's."""

    id: str
    caption: str
    category: str
    path: str
    score: float


def seal_bundle(folder: Path, **fields: Any) -> BundleInfo:  # noqa: ANN401 - fields of BundleInfo but files
    """Write `bundle.json` over the files that lie in `folder`: the last step of writing a bundle."""
    files = {path.name: _sha256(path) for path in sorted(folder.iterdir()) if path.is_file()}
    info = BundleInfo(files=files, **fields)
    (folder / "bundle.json").write_text(info.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return info


def read_info(folder: Path) -> BundleInfo:
    """Read `bundle.json`."""
    path = folder / "bundle.json"
    try:
        return BundleInfo.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise EaglerayError(
            "this folder is no bundle: it has no bundle.json",
            "give the output of an export stage",
            str(folder),
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise EaglerayError(
            f"bundle.json can't be read: {field}: {first['msg']}",
            "export the bundle again with this version of eagleray",
            str(path),
        ) from None


def bundle_digest(folder: Path) -> str:
    """Digest of a whole bundle: of `bundle.json`, which holds the digests of all other files."""
    return _sha256(folder / "bundle.json")


def load_bundle(folder: Path, threads: int = 1) -> LoadedBundle:
    """Load a bundle, after checking every file against its digest.

    Args:
        folder: the bundle.
        threads: threads of one graph (ONNX Runtime's intra-op threads).
    """
    info = read_info(folder)
    for name, digest in info.files.items():
        path = folder / name
        if not path.is_file() or _sha256(path) != digest:
            state = "was changed after it was written" if path.is_file() else "is missing"
            raise EaglerayError(f"the bundle's {name} {state}", "export the bundle again", str(path))
    sessions: dict[Modality, ort.InferenceSession] = {
        modality: open_graph(folder / f"{modality}.onnx", threads) for modality in GRAPH_INPUTS
    }
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return LoadedBundle(info, sessions, tokenizer, pq.read_table(folder / "index.parquet"))


def open_graph(path: Path, threads: int = 1) -> ort.InferenceSession:
    """Open an ONNX graph on the CPU, run by `threads` threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return ort.InferenceSession(path, sess_options=options, providers=["CPUExecutionProvider"])


class LoadedBundle:
    """Prepares inputs with the corpus's own operators, embeds them, and searches the index."""

    def __init__(
        self,
        info: BundleInfo,
        sessions: Mapping[Modality, ort.InferenceSession],
        tokenizer: Tokenizer,
        index: pa.Table,
    ) -> None:
        self.info = info
        self._sessions = sessions
        self._tokenizer = tokenizer
        self._index = index.drop_columns(["embedding"])
        vectors = index["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        self._vectors = vectors.reshape(-1, info.embed_dim).astype(np.float32, copy=False)

    @property
    def first_caption(self) -> str:
        """Caption of the first indexed picture that has one: a question for trying things out."""
        return next((caption for caption in self._index["caption"].to_pylist() if caption), "A picture.")

    def prepare_image(self, data: bytes) -> Arrays:
        """Prepare an encoded picture: image (3, H, W) float32."""
        preparation = self.info.preparation
        stored = image.decode(data, preparation.stored_image_size, preparation.fit)
        return {"image": image.normalise(image.center(stored[None], preparation.image_size))[0]}

    def prepare_text(self, string: str) -> Arrays:
        """Prepare a text: tokens (T,) int64, token_mask (T,) bool; what is too long is cut."""
        tokens, mask = text.encode(self._tokenizer, [string], self.info.preparation.max_tokens)
        return {"tokens": tokens[0], "token_mask": mask[0]}

    def prepare_speech(self, data: bytes) -> Arrays:
        """Prepare encoded speech: mel (F, n_mels) float32, mel_mask (F,) bool; what is too long is cut."""
        preparation = self.info.preparation
        wave = audio.decode(data, preparation.sample_rate)
        mel, mask = audio.pad(audio.normalise(audio.log_mel(wave, preparation)), preparation.max_frames)
        return {"mel": mel, "mel_mask": mask}

    def blank(self, modality: Modality) -> Arrays:
        """An input of a modality that says nothing, prepared."""
        kinds = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_}
        return {
            one.name: np.ones([int(size) for size in one.shape[1:]], kinds[one.dtype])
            for one in self.info.graphs[modality].inputs
        }

    def embed(self, modality: Modality, rows: Sequence[Arrays]) -> NDArray[np.float32]:
        """Embed prepared rows of one modality as one batch: unit vectors (B, E)."""
        names = GRAPH_INPUTS[modality]
        return self.embed_batch(modality, {name: np.stack([row[name] for row in rows]) for name in names})

    def embed_batch(self, modality: Modality, batch: Arrays) -> NDArray[np.float32]:
        """Embed a batch of stacked arrays, which may hold other modalities' too: unit vectors (B, E)."""
        feed = {name: batch[name] for name in GRAPH_INPUTS[modality]}
        (embedding,) = self._sessions[modality].run([EMBEDDING], feed)
        return cast(NDArray[np.float32], embedding)

    def search(self, query: NDArray[np.float32], top_k: int) -> list[Hit]:
        """Rank the indexed pictures by cosine with `query` (E,); the best `top_k`, equal ones by id."""
        scores = self._vectors @ query
        order = np.argsort(-scores, kind="stable")[:top_k]
        rows = self._index.take(pa.array(order)).to_pylist()
        return [Hit(**row, score=float(scores[i])) for row, i in zip(rows, order, strict=True)]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
