"""Financial PhraseBank (Malo et al. 2014): sentences of financial news with the sentiment of an investor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from ..files import Files
from ..quarantine import Refusal, Refuse, Refused, file_missing
from ..source import Row, Source, SourceSpec, Unit
from ..spec import Preparation

SENTIMENTS = ("negative", "neutral", "positive")
AGREEMENTS = {"50": "50Agree", "66": "66Agree", "75": "75Agree", "all": "AllAgree"}


class FinancialPhraseBankSpec(SourceSpec):
    """Financial PhraseBank, in a folder of your own: its files can't be had from a package."""

    kind: Literal["financial-phrasebank"] = "financial-phrasebank"
    agreement: Literal["50", "66", "75", "all"] = "all"
    """Per cent of the annotators that had to agree on a sentence."""


def list_units(spec: FinancialPhraseBankSpec, files: Files) -> Iterator[Unit | Refusal]:
    """The one file of that agreement."""
    name = f"Sentences_{AGREEMENTS[spec.agreement]}.txt"
    path = next((path for path in files.entries if path.rpartition("/")[2] == name), None)
    yield file_missing("financial-phrasebank", name) if path is None else Unit(path, (path,))


def read(
    spec: FinancialPhraseBankSpec, files: Files, unit: Unit, preparation: Preparation, refuse: Refuse
) -> Iterator[Row]:
    """A record for each line `sentence@sentiment`; the files are in Latin-1. Who repeats a sentence shares
    its group.
    """
    (path,) = unit.files
    for number, line in enumerate(files.read(path).decode("latin-1").splitlines(), 1):
        sentence, _, sentiment = line.rpartition("@")
        if sentiment.strip() not in SENTIMENTS or not sentence.strip():
            message = f"the line ends with no sentiment ({', '.join(SENTIMENTS)}) after an @"
            refuse(Refused("bad-line", message), f"{path}:{number}", whole=True)
            continue
        text = sentence.strip()
        yield {
            "id": f"{unit.name}#{number}",
            "group": " ".join(text.casefold().split()),
            "category": sentiment.strip(),
            "text": text,
            "language": "en",
        }


SOURCE = Source(
    spec=FinancialPhraseBankSpec,
    summary="Financial PhraseBank: sentences with their sentiment",
    columns=lambda spec: ("category", "text", "language"),
    list_units=list_units,
    read=read,
    licence="CC-BY-NC-SA-3.0",
)
