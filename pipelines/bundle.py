"""A bundle: the folder that serving loads. ONNX graphs, a tokenizer, an index, and `bundle.json`.

A graph for each modality makes an embedding and hidden states; where the model answers, `evidence` makes of
these what an answer is decoded from, and `step` decodes a token. `bundle.json` is written last and holds the
sha256 of every other file.

Shape letters: B rows, N positions, D width, E embedding, M modalities, L blocks of the decoder, H heads,
K head width, C tokens of the longest answer, V vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from ..workflows.errors import EaglerayError
from ..workflows.spec import Spec
from .media import prepare
from .media.prepare import Arrays
from .providers import Choice, choose, providers_for, tell_once, this_machine
from .spec import PAD, Accelerator, Assessed, Form, Modality, Preparation, Slicing

if TYPE_CHECKING:  # each is large, and not every bundle has use for it
    from tokenizers import Tokenizer

    from .index import Hit, Index
    from .statistics import Statistics

GRAPH_INPUTS: Mapping[Modality, tuple[str, ...]] = {
    "image": ("image",),
    "text": ("tokens", "token_mask"),
    "speech": ("mel", "mel_mask"),
}
"""Modality → the names of its graph's inputs."""

EMBEDDING = "unit_embedding"
"""First output of a modality's graph; the exporter itself names values `embedding`, and they would clash."""
STATES, CLASS_LOGITS, TRANSCRIPT = "hidden_states", "class_logits", "transcript_log_probs"
_EVIDENCE: Mapping[str, tuple[Modality, str]] = {
    "image_states": ("image", STATES),
    "text_states": ("text", STATES),
    "speech_states": ("speech", STATES),
    "token_mask": ("text", "token_mask"),
    "mel_mask": ("speech", "mel_mask"),
}
EVIDENCE_INPUTS = (*_EVIDENCE, "present", "question_type")
OF_QUESTIONS = frozenset({"text_states", "token_mask", "question_type"})
"""Those that a model takes that answers questions; one that describes takes the others."""
WEIGHTS, MEMORY, SEEN, MAP = "weights", "memory_", "seen_", "map_"
"""Outputs of `evidence` and `step`; to the last three a modality's name is added."""
STEP_INPUTS = ("token", "length", "own_memory")
"""And what `evidence` gives."""
LOG_PROBS, OWN = "log_probs", "own_memory_after"

DOCUMENT = "document"
"""Graph that reads a document's segments."""
MARKS = "marks"
"""Graph that marks pictures: image (B, 3, S, S) → probabilities (B, K, S, S) of findings."""
PROBABILITIES = "probabilities"
"""Its output."""
MANIFEST = "bundle.json"
"""File that says what a bundle is."""
ANOMALY = "anomaly"
"""Graph that tells what looks like nothing normal, and the label of that: image (B, 3, S, S) → scores
(B, 1, S, S)."""
SCORES = "scores"
"""Its output: from 0 to 1, a half at the threshold that was set on normal pictures; no probabilities."""
BESIDE = "beside"
"""Graph that reads the text beside a picture or a volume, where `marks` hangs on it: tokens (B, T) under
their mask (B, T) → what it changes."""
MODULATION = "modulation"
"""Its output (B, 2*C), which `marks` then takes besides; zeros without a text."""
SAMPLE = "sample.json"
"""File of a document of the corpus, for trying things out; a bundle that doesn't assess is without."""
ON_CPU: Sequence[tuple[str, dict[str, Any]]] = (("CPUExecutionProvider", {}),)
STATISTICS = "statistics.json"
"""File of what the inputs were like that a model was trained on; a bundle may be without."""

_KINDS = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_}


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


class Decoding(Spec):
    """How answers are decoded."""

    asks: bool
    """Whether an answer is to a question; else it describes what is there."""
    max_tokens: int
    """Of an answer."""
    question_types: tuple[str, ...]
    """Regular expressions for a question in small letters; the first that is found gives its type."""

    def question_type(self, question: str) -> int:
        """Number of a question's type; -1 for none."""
        found = (re.search(pattern, question.casefold()) for pattern in self.question_types)
        return next((number for number, match in enumerate(found) if match), -1)


class Reading(Spec):
    """How documents are read."""

    length: int
    """Tokens of a segment."""
    overlap: int
    """That two neighbouring ones have in common."""


class Marking(Spec):
    """How what is marked in pictures, or in volumes' slices, is found."""

    size: int
    """Side of what the graph sees at once, pixels."""
    findings: tuple[str, ...]
    """In the order of the graph's output."""
    threshold: float
    """Probability from which on a pixel is told."""
    pixels_per_mm: float | None = None
    """Of the pictures that it was trained on; none if that isn't known, or for volumes."""
    compares: bool = False
    """The graph also takes how each picture should look."""
    slicing: Slicing | None = None
    """None where pictures are assessed."""
    reads_text: bool = False
    """Whether what is marked hangs on a text beside the picture or the volume, too, where there is one."""


class AnomalyScoring(Spec):
    """How what looks like nothing normal is found in pictures."""

    size: int
    """Side of what the graph sees at once, pixels."""
    threshold: float = 0.5
    """Score from which on a pixel is told."""
    false_alarms: float
    """Share of normal pictures of that size in which anything is told, as it was set."""
    pixels_per_mm: float | None = None
    """Of the pictures that it was fitted to; none if that isn't known."""


class FormInfo(Spec):
    """How graphs in another form compare with those in single precision, on rows of the corpus."""

    decided: Mapping[str, int]
    """Decision → of how many rows."""
    flips: Mapping[str, int]
    """Decision → of how many rows it is another."""
    right: Mapping[str, float]
    """Decision → share that is right, where that is known."""
    size_share: float
    """Bytes of the graphs over those in single precision."""


class BundleInfo(Spec):
    """What `bundle.json` holds."""

    schema_version: Literal[2] = 2
    embed_dim: int
    """Of embeddings; 0 where there are none."""
    classes: tuple[str, ...]
    preparation: Preparation
    graphs: Mapping[str, GraphSignature]
    """Modality, `evidence`, `step`, `document`, `marks`, `beside` or `anomaly` → its graph."""
    decoding: Decoding | None
    """None where the model doesn't answer."""
    document: Reading | None = None
    """None where it doesn't read documents for their category."""
    marking: Marking | None = None
    """None where nothing is marked in pictures or volumes."""
    anomaly: AnomalyScoring | None = None
    """None where pictures aren't held against normal ones."""
    forms: Mapping[Form, FormInfo] = Field(default_factory=dict)
    """Further forms of all graphs."""
    lineage: Lineage
    files: Mapping[str, str]
    """File name → sha256, hex."""

    @property
    def transcribes(self) -> bool:
        """Whether it makes a text of speech."""
        return self._gives("speech", TRANSCRIPT)

    @property
    def classifies(self) -> bool:
        """Whether it knows categories of pictures."""
        return self._gives("image", CLASS_LOGITS)

    @property
    def assesses(self) -> tuple[Assessed, ...]:
        """What it assesses whole."""
        found: list[Assessed] = ["document"] if self.document is not None else []
        if self.marking is not None:
            found.append("picture" if self.marking.slicing is None else "volume")
        elif self.anomaly is not None:
            found.append("picture")
        return tuple(found)

    @property
    def embeds(self) -> bool:
        """Whether it embeds pictures, texts and speech in one space."""
        return self.embed_dim > 0

    def _gives(self, graph: str, output: str) -> bool:
        return graph in self.graphs and any(one.name == output for one in self.graphs[graph].outputs)


def seal_bundle(folder: Path, **fields: Any) -> BundleInfo:  # noqa: ANN401 - fields of BundleInfo but files
    """Write `bundle.json` over the files that lie in `folder`: the last step of writing a bundle."""
    files = {path.name: _sha256(path) for path in sorted(folder.iterdir()) if path.is_file()}
    info = BundleInfo(files=files, **fields)
    (folder / MANIFEST).write_text(info.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return info


def read_info(folder: Path) -> BundleInfo:
    """Read `bundle.json`."""
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise EaglerayError(
            "this folder is no bundle: it has no bundle.json",
            "give the output of an export stage",
            str(folder),
        ) from None
    return parse_info(content, str(path))


def parse_info(content: bytes, where: str) -> BundleInfo:
    """Read what a `bundle.json` holds."""
    try:
        return BundleInfo.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise EaglerayError(
            f"bundle.json can't be read: {field}: {first['msg']}",
            "export the bundle again with this version of eagleray",
            where,
        ) from None


def bundle_digest(folder: Path) -> str:
    """Digest of a whole bundle: of `bundle.json`, which holds the digests of all other files."""
    return _sha256(folder / MANIFEST)


def load_bundle(folder: Path, form: Form | None = None, threads: int = 1) -> LoadedBundle:
    """Load a bundle, after checking every file against its digest.

    Args:
        folder: the bundle.
        form: of its graphs; None is single precision.
        threads: threads of one graph (ONNX Runtime's intra-op threads).
    """
    info = read_info(folder)
    if form is not None and form not in info.forms:
        has = ", ".join(info.forms) or "none but single precision"
        raise EaglerayError(
            f"the bundle has no {form} graphs: {has}", f"export it with `forms: [{form}]`", str(folder)
        )
    check_files(folder, info)
    return LoadedBundle(folder, info, form, threads)


def check_files(folder: Path, info: BundleInfo) -> None:
    """Check every file of a bundle against its digest.

    Raises:
        EaglerayError: when one was changed, or is missing.
    """
    for name, digest in info.files.items():
        path = folder / name
        if not path.is_file() or _sha256(path) != digest:
            state = "was changed after it was written" if path.is_file() else "is missing"
            raise EaglerayError(f"the bundle's {name} {state}", "export the bundle again", str(path))


def graph_file(graph: str, form: Form | None = None) -> str:
    """Name of a graph's file."""
    return f"{graph}.onnx" if form is None else f"{graph}.{form}.onnx"


def open_graph(
    path: Path, threads: int = 1, providers: Sequence[tuple[str, dict[str, Any]]] = ON_CPU
) -> ort.InferenceSession:
    """Open an ONNX graph, on the CPU if nothing else is said, run there by `threads` threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others need the CPU
    return ort.InferenceSession(path, sess_options=options, providers=list(providers))


class LoadedBundle:
    """Prepares inputs with the corpus's own operators, runs the graphs, and searches the index.

    Graphs and index are opened when they are first used: nobody uses all of them.

    Args:
        folder: the bundle.
        info: what its `bundle.json` holds.
        form: of the graphs; None is single precision.
        threads: of one graph.

    Attributes:
        info, form: see above.
    """

    def __init__(self, folder: Path, info: BundleInfo, form: Form | None = None, threads: int = 1) -> None:
        self.info = info
        self.form: Form | None = form
        self._folder, self._threads = folder, threads
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._choice: Choice | None = None

    def accelerate(self, wanted: Accelerator, engines: Path | None = None, max_rows: int = 16) -> Choice:
        """Run graphs on the fastest that works here, from `wanted` on, and log once which that is.

        Args:
            wanted: see `Accelerator`.
            engines: folder that TensorRT's engines are kept in, beside the bundle by default.
            max_rows: of a batch, that engines are made for.
        """
        where = self._folder.with_name(f"{self._folder.name}.engines") if engines is None else engines
        self._choice = choose(wanted, this_machine(), where, max_rows)
        self._sessions.clear()
        if wanted != "cpu":
            tell_once(self._choice.line)
        return self._choice

    def providers(self, graph: str) -> Sequence[tuple[str, dict[str, Any]]]:
        """ONNX Runtime's providers that a graph runs on, with their options."""
        if self._choice is None or self._choice.provider == "cpu":
            return ON_CPU
        digest = self.info.files[graph_file(graph, self.form)]
        shapes = {one.name: one.shape for one in self.info.graphs[graph].inputs}
        return providers_for(self._choice, digest, self.form, shapes)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Of all its texts."""
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self._folder / "tokenizer.json"))

    @cached_property
    def statistics(self) -> Statistics | None:
        """What the inputs were like that it was trained on, if it says so."""
        if STATISTICS not in self.info.files:
            return None
        from .statistics import Statistics

        return Statistics.model_validate_json(self.file(STATISTICS))

    def file(self, name: str) -> bytes:
        """The content of one of its files."""
        return (self._folder / name).read_bytes()

    @property
    def sample(self) -> tuple[str, dict[str, Any]]:
        """A request for trying things out: its path and body."""
        if self.info.embeds:
            caption = next((caption for caption in self.captions if caption), "A picture.")
            return "/v1/search", {"text": caption, "top_k": 3}
        return "/v1/assess", json.loads(self.file(SAMPLE))

    @property
    def captions(self) -> list[str]:
        """Of the indexed pictures; empty where one has none."""
        if not self.info.embeds:
            return []
        return self._index.captions

    def prepare_image(self, data: bytes) -> Arrays:
        """See `media.prepare`."""
        return prepare.prepare_image(data, self.info.preparation)

    def prepare_text(self, string: str) -> Arrays:
        """Prepare a text: tokens (T,) int64, token_mask (T,) bool; what is too long is cut."""
        from .media import text

        tokens, mask = text.encode(self.tokenizer, [string], self.info.preparation.max_tokens)
        return {"tokens": tokens[0], "token_mask": mask[0]}

    def told_beside(self, string: str | None) -> Arrays:
        """What `marks` takes beside each picture, a row of it: what a text says; nothing where it reads none.

        Args:
            string: the text beside the picture or the volume; none, or an empty one, changes nothing.
        """
        if self.info.marking is None or not self.info.marking.reads_text:
            return {}
        tokens, mask = self.prepare_text(string or "").values()
        feed = {"tokens": tokens[None], "token_mask": mask[None] & bool(string)}
        return self.run(BESIDE, feed, (MODULATION,))

    def prepare_speech(self, data: bytes) -> Arrays:
        """See `media.prepare`."""
        return prepare.prepare_speech(data, self.info.preparation)

    def spell(self, log_probs: NDArray[np.float32]) -> str:
        """The text of a transcript's log-probabilities (N, V): at each position the likeliest token."""
        tokens = [token for token, _ in groupby(log_probs.argmax(axis=-1).tolist()) if token != PAD]
        return self.tokenizer.decode(tokens)

    def blank(self, graph: str) -> Arrays:
        """A row of what a graph takes that says nothing."""
        return {
            one.name: np.ones([int(size) for size in one.shape[1:]], _KINDS[one.dtype])
            for one in self.info.graphs[graph].inputs
        }

    def embed(self, modality: Modality, rows: Sequence[Arrays]) -> NDArray[np.float32]:
        """Embed prepared rows of one modality as one batch: unit vectors (B, E)."""
        names = GRAPH_INPUTS[modality]
        return self.embed_batch(modality, {name: np.stack([row[name] for row in rows]) for name in names})

    def embed_batch(self, modality: Modality, batch: Arrays) -> NDArray[np.float32]:
        """Embed a batch of stacked arrays, which may hold other modalities' too: unit vectors (B, E)."""
        feed = {name: batch[name] for name in GRAPH_INPUTS[modality]}
        return cast(NDArray[np.float32], self.run(modality, feed, (EMBEDDING,))[EMBEDDING])

    @property
    def decoding(self) -> Decoding:
        """How answers are decoded.

        Raises:
            EaglerayError: when the model doesn't answer.
        """
        if self.info.decoding is None:
            raise EaglerayError("the model does not answer", "train it with a weight for objective.answer")
        return self.info.decoding

    def encode(self, modality: Modality, rows: Sequence[Arrays]) -> list[Arrays]:
        """Run a modality's graph on prepared rows as one batch: each row's outputs, and its mask."""
        names = GRAPH_INPUTS[modality]
        batch = {name: np.stack([row[name] for row in rows]) for name in names}
        masks = {name: batch[name] for name in names if name.endswith("_mask")}
        return split({**self.run(modality, batch), **masks})

    def gather(self, rows: Sequence[Mapping[Modality, Arrays]], kinds: Sequence[int]) -> Arrays:
        """What answers are decoded from, of all rows.

        Args:
            rows: what `encode` made of each modality that there is.
            kinds: each one's type of question.
        """
        nothing = self._nothing
        feed: dict[str, NDArray[Any]] = {}
        for name in nothing.keys() & _EVIDENCE.keys():
            modality, key = _EVIDENCE[name]
            found = [row[modality][key] if modality in row else nothing[name] for row in rows]
            feed[name] = np.stack(found)
        feed["present"] = np.array([[modality in row for modality in GRAPH_INPUTS] for row in rows], np.bool_)
        if "question_type" in nothing:
            feed["question_type"] = np.array(kinds, np.int64)
        return self.run("evidence", feed)

    def run(self, graph: str, feed: Arrays, outputs: Sequence[str] | None = None) -> Arrays:
        """Run a graph on a batch; its outputs by name, all of them by default."""
        session = self._sessions.get(graph)
        if session is None:
            path = self._folder / graph_file(graph, self.form)
            session = open_graph(path, self._threads, providers := self.providers(graph))
            if (ran := session.get_providers()[0]) != providers[0][0]:
                tell_once(f"{providers[0][0]} didn't load, as ONNX Runtime says above: graphs run on {ran}")
            self._sessions[graph] = session
        names = [one.name for one in session.get_outputs()] if outputs is None else list(outputs)
        return dict(zip(names, (np.asarray(one) for one in session.run(names, dict(feed))), strict=True))

    def mark(self, windows: NDArray[np.float32], beside: Arrays) -> NDArray[np.float32]:
        """Probabilities of findings (B, K, S, S) in pictures.

        Args:
            windows: the pictures (B, 3, S, S), or with what they are compared with (B, 6, S, S).
            beside: what `told_beside` gives, the same for all of them.
        """
        seen = {"image": windows[:, :3]} | ({"reference": windows[:, 3:]} if windows.shape[1] > 3 else {})
        feed = seen | {name: one.repeat(len(windows), axis=0) for name, one in beside.items()}
        return self.run(MARKS, feed, (PROBABILITIES,))[PROBABILITIES]

    def search(self, query: NDArray[np.float32], top_k: int) -> list[Hit]:
        """Rank the indexed pictures by cosine with `query` (E,); the best `top_k`, equal ones by id."""
        return self._index.search(query, top_k)

    @cached_property
    def _nothing(self) -> Arrays:
        """A row of evidence in which nothing is there."""
        return {name: np.zeros_like(array) for name, array in self.blank("evidence").items()}

    @cached_property
    def _index(self) -> Index:
        from .index import Index

        return Index(self._folder, self.info.embed_dim)


def split(batch: Arrays) -> list[Arrays]:
    """The rows of a batch."""
    length = len(next(iter(batch.values())))
    return [{name: array[row] for name, array in batch.items()} for row in range(length)]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
