"""The stage that turns a source of files into a corpus."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ...workflows.artifacts import Bundle, Corpus
from ...workflows.errors import EaglerayError
from ...workflows.spec import RunOptions, Runtime, StageSpec
from ...workflows.stage import StageContext, stage
from ..catalog import operator_of, operators, source_of, sources, spec_type
from ..operator import Operator, OperatorSpec, check_chain
from ..operators.decode import DecodeImageSpec, DecodeSpeechSpec
from ..operators.encode import EncodeSpeechSpec
from ..packages import fetch_package
from ..source import SourceSpec, content_digest, open_source
from ..spec import CPUS_PER_TASK, Packing, Preparation, Splits, Terms

if TYPE_CHECKING:
    AnySource = SourceSpec
    AnyOperator = OperatorSpec
else:
    AnySource = spec_type(one.spec for one in sources().values())
    AnyOperator = spec_type(one.spec for one in operators().values())

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


class PreprocessSpec(StageSpec):
    """Read a source's records, prepare them, and write them as shards to train on."""

    kind: Literal["preprocess"] = "preprocess"
    source: AnySource
    """Where the records come from."""
    operators: tuple[AnyOperator, ...] = ()
    """What is done to every record between decoding and encoding it, in order."""
    preparation: Preparation = Preparation()
    """How they become arrays."""
    terms: Terms | None = None
    """Give words of a field tokens of their own, added to those of the tokenizer; none by default."""
    splits: Splits = Splits()
    """Shares of training, validation and test."""
    packing: Packing | None = None
    """Pack the documents' tokens into sequences of one length; none by default."""
    error_budget: float = Field(default=0.02, ge=0)
    """Broken inputs before the stage stops: below 1 a share of all records, from 1 on a number."""
    error_budgets: Mapping[str, float] = Field(default_factory=dict)
    """Budgets of single reasons; these may be what a filter leaves out, too."""
    shard_bytes: int = Field(default=128 << 20, ge=1)
    """Bytes from which on a shard is full."""
    parallelism: int | None = Runtime(None, ge=1)
    """Tasks at once; two for each core of the cluster by default."""
    block_units: int | None = Runtime(None, ge=1)
    """Units that a task reads; by default half of its share of those left, at most 16,384."""
    run: RunOptions = Runtime(RunOptions(num_cpus=0.5))


def chain_of(spec: PreprocessSpec) -> tuple[tuple[Operator, OperatorSpec], ...]:
    """The operators that a spec names, between decoding what its source gives and encoding it."""
    columns = source_of(spec.source).columns(spec.source)
    before: list[OperatorSpec] = []
    after: list[OperatorSpec] = []
    if "picture" in columns:
        before.append(DecodeImageSpec())
    if "recordings" in columns:
        before.append(DecodeSpeechSpec())
        after.append(EncodeSpeechSpec())
    return tuple((operator_of(one), one) for one in (*before, *spec.operators, *after))


def check(name: str, spec: PreprocessSpec) -> None:
    """Refuse a chain of operators that lacks a column, before anything is read."""
    source = source_of(spec.source)
    chain = chain_of(spec)
    columns = check_chain(source.columns(spec.source), chain, source.name)
    asking = [operator.name for operator, _ in chain if operator.asks_model]
    if asking and "bundle" not in spec.inputs:
        raise EaglerayError(
            f"operator {asking[0]} asks a model, and the stage is given none",
            f"add `inputs: {{bundle: STAGE}}` to {name}, naming an export stage",
            f"{name}.operators",
        )
    if spec.terms is not None and not {"text", "captions"} & set(columns):
        raise EaglerayError(
            f"there is no text whose words could be terms: the source {source.name} gives none",
            "leave terms out",
            f"{name}.terms",
        )
    if spec.packing and "text" not in columns:
        raise EaglerayError(
            f"there is nothing to pack: the source {source.name} gives no documents",
            "leave packing out",
            f"{name}.packing",
        )


def digest(spec: PreprocessSpec, cache: Path) -> str:
    """Digest of the source's data."""
    return content_digest(source_of(spec.source), spec.source, cache)


@stage(
    PreprocessSpec,
    gives=Corpus,
    outside=digest,
    check=check,
    cpus=lambda spec: spec.run.num_cpus + CPUS_PER_TASK,
    may_take={"tokenizer": Corpus, "bundle": Bundle},
)
def preprocess(
    ctx: StageContext, spec: PreprocessSpec, tokenizer: Corpus | None = None, bundle: Bundle | None = None
) -> dict[str, Any]:
    """Read a source's records, prepare them, and write them as shards to train on."""
    from ..corpus import write_corpus  # Ray and Arrow load here, not in `plan`
    from ..preparing import Recipe

    check(ctx.stage, spec)
    try:
        source = source_of(spec.source)
        files = open_source(source, spec.source, ctx.cache, ctx.log)
        recipe = Recipe(
            source,
            spec.source,
            files,
            chain_of(spec),
            spec.preparation,
            bundle.path if bundle else None,
            ctx.cache,
        )
        for operator, _ in recipe.chain:
            if operator.package is not None:  # before any task asks for it
                fetch_package(operator.package, ctx.cache, ctx.log)
        other = tokenizer.path if tokenizer else None
        info = write_corpus(ctx, spec, recipe, digest(spec, ctx.cache), other)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise EaglerayError(
            f"the corpus can't be written: {os.strerror(error.errno)}",
            "free some space or choose another folder; what other stages finished is kept",
            str(error.filename or ctx.output),
        ) from error
    return info.model_dump(mode="json", include={"splits", "quarantined", "vocab_size", "source"}) | {
        "classes": len(info.classes)
    }
