"""What a bundle decides on rows of its corpus, so that two forms of it can be held to each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...models.spec import MODALITIES
from ...pipelines.assessing.documents import DocumentAssessor
from ...pipelines.assessing.pictures import told_of
from ...pipelines.bundle import (
    ANOMALY,
    BESIDE,
    CLASS_LOGITS,
    DOCUMENT,
    EMBEDDING,
    GRAPH_INPUTS,
    MARKS,
    MODULATION,
    PROBABILITIES,
    SCORES,
    TRANSCRIPT,
    Arrays,
    LoadedBundle,
)
from ...pipelines.spec import Modality
from .decoding import AnswerBatch, Sampling

BATCH = 16


@dataclass(frozen=True)
class Decision:
    """One thing that is decided of every row that has what it needs.

    Attributes:
        graphs: which it hangs on, the first of them most.
        rows: of the corpus's sample.
        found: what is decided of each.
        right: what would be right, where that is known.
    """

    graphs: tuple[str, ...]
    rows: tuple[int, ...]
    found: tuple[str, ...]
    right: tuple[str, ...] = ()

    @property
    def share_right(self) -> float | None:
        """Share of what is known to be right; None if nothing is known."""
        if not self.right:
            return None
        return float(np.mean([ours == right for ours, right in zip(self.found, self.right, strict=True)]))

    def flips(self, other: Decision) -> list[str]:
        """Where another decides otherwise, in words."""
        pairs = zip(self.rows, self.found, other.found, strict=True)
        return [f"row {row}: {ours!r}, then {theirs!r}" for row, ours, theirs in pairs if ours != theirs]


def decide(bundle: LoadedBundle, rows: Arrays) -> dict[str, Decision]:
    """All that a bundle decides.

    Args:
        bundle: in the form that is asked about.
        rows: as a corpus's reader gives them (`CorpusReader.examples`).

    Returns:
        For each modality `picture nearest to MODALITY`, the indexed one; `category`; `transcript`;
        `document`, its category; `marks`, what is told of the picture; `anomaly`, whether that is told of it;
        `answer`.
    """
    found: dict[str, Decision] = {}
    encoded: list[dict[Modality, Arrays]] = [{} for _ in rows["present"]]
    for modality, names in GRAPH_INPUTS.items():
        if modality not in bundle.info.graphs:
            continue
        has = np.flatnonzero(rows["present"][:, MODALITIES.index(modality)])
        outputs: list[Arrays] = []
        for start in range(0, len(has), BATCH):
            some = has[start : start + BATCH]
            outputs += bundle.encode(modality, [{name: rows[name][row] for name in names} for row in some])
        for row, output in zip(has.tolist(), outputs, strict=True):
            encoded[row][modality] = output
        places = tuple(has.tolist())
        nearest = tuple(bundle.search(output[EMBEDDING], 1)[0].id for output in outputs)
        found[f"picture nearest to {modality}"] = Decision((modality,), places, nearest)
        if outputs and CLASS_LOGITS in outputs[0]:
            found["category"] = _categories(bundle, places, outputs, rows)
        if outputs and TRANSCRIPT in outputs[0]:
            said = tuple(bundle.spell(output[TRANSCRIPT]) for output in outputs)
            found["transcript"] = Decision((modality,), places, said)
    if bundle.info.document is not None:
        found["document"] = _documents(bundle, rows)
    if (marking := bundle.info.marking) is not None:
        found["marks"] = _told(bundle, rows, MARKS, PROBABILITIES, marking.findings, marking.threshold)
    if (anomaly := bundle.info.anomaly) is not None:
        found["anomaly"] = _told(bundle, rows, ANOMALY, SCORES, (ANOMALY,), anomaly.threshold)
    if bundle.info.decoding is not None:
        found["answer"] = _answers(bundle, encoded, rows)
    return found


def _documents(bundle: LoadedBundle, rows: Arrays) -> Decision:
    """The likeliest category of each row's text."""
    assessor, classes = DocumentAssessor(bundle), bundle.info.classes
    places = np.flatnonzero(rows["token_mask"].any(axis=1)).tolist()
    logits = [assessor.read(rows["tokens"][row][rows["token_mask"][row]])[0] for row in places]
    labels = [int(rows["label"][row]) for row in places]
    right = tuple(classes[label] for label in labels) if min(labels, default=-1) >= 0 else ()
    return Decision((DOCUMENT,), tuple(places), tuple(classes[int(one.argmax())] for one in logits), right)


def _told(
    bundle: LoadedBundle, rows: Arrays, graph: str, output: str, labels: Sequence[str], threshold: float
) -> Decision:
    """Which findings are told of each row's picture."""
    places = np.flatnonzero(rows["present"][:, MODALITIES.index("image")])
    names = [one.name for one in bundle.info.graphs[graph].inputs]
    told: list[str] = []
    for start in range(0, len(places), BATCH):
        some = places[start : start + BATCH]
        feed = {name: rows[name][some] for name in names if name != MODULATION}
        if MODULATION in names:
            texts = {name: rows[name][some] for name in GRAPH_INPUTS["text"]}
            feed |= bundle.run(BESIDE, texts, (MODULATION,))
        for likely in bundle.run(graph, feed, (output,))[output]:
            there = set(np.unique(told_of(likely, threshold)).tolist())
            told.append(", ".join(label for number, label in enumerate(labels, 1) if number in there))
    graphs = (graph, BESIDE) if MODULATION in names else (graph,)
    return Decision(graphs, tuple(places.tolist()), tuple(told))


def _categories(
    bundle: LoadedBundle, places: tuple[int, ...], outputs: Sequence[Arrays], rows: Arrays
) -> Decision:
    classes = bundle.info.classes
    guessed = tuple(classes[int(output[CLASS_LOGITS].argmax())] for output in outputs)
    labels = [int(rows["label"][place]) for place in places]
    right = tuple(classes[label] for label in labels) if min(labels, default=-1) >= 0 else ()
    return Decision(("image",), places, guessed, right)


def _answers(bundle: LoadedBundle, encoded: Sequence[Mapping[Modality, Arrays]], rows: Arrays) -> Decision:
    """The likeliest answer to each row's text, or description of what else there is."""
    asks = bundle.decoding.asks
    needed = "text" if asks else "image"
    places = tuple(row for row, parts in enumerate(encoded) if needed in parts)
    told: list[str] = []
    for start in range(0, len(places), BATCH):
        some = places[start : start + BATCH]
        texts = [
            bundle.tokenizer.decode(rows["tokens"][row][rows["token_mask"][row]].tolist()) for row in some
        ]
        kinds = [bundle.decoding.question_type(one) for one in texts]
        parts: list[Mapping[Modality, Arrays]] = [
            {m: arrays for m, arrays in encoded[row].items() if asks or m != "text"} for row in some
        ]
        batch = AnswerBatch(bundle)
        begun = batch.join(bundle.gather(parts, kinds), [Sampling()] * len(some))
        while batch.answers:
            batch.step()
        told += [one.text for one in begun]
    right: tuple[str, ...] = ()
    if "answer" in rows and asks and all(rows["answer_mask"][row].any() for row in places):
        right = tuple(
            bundle.tokenizer.decode(rows["answer"][row][rows["answer_mask"][row]].tolist()) for row in places
        )
    return Decision(("step", "evidence", "image", "text", "speech"), places, tuple(told), right)


def compare(before: Mapping[str, Decision], after: Mapping[str, Decision]) -> dict[str, list[str]]:
    """Decision → where it flips, in words."""
    return {name: decision.flips(after[name]) for name, decision in before.items()}
