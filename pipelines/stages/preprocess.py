"""The stage that turns a source of files into a corpus."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ...workflows.artifacts import Corpus
from ...workflows.errors import EaglerayError
from ...workflows.spec import RunOptions, Runtime, StageSpec
from ...workflows.stage import StageContext, stage
from ..catalog import source_of, spec_type
from ..source import SourceSpec
from ..spec import CPUS_PER_TASK, Preparation, Splits

if TYPE_CHECKING:
    AnySource = SourceSpec
else:
    AnySource = spec_type()

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


class PreprocessSpec(StageSpec):
    """Decode a source's pictures, captions and recordings into Parquet shards."""

    kind: Literal["preprocess"] = "preprocess"
    source: AnySource
    """Where the records come from."""
    preparation: Preparation = Preparation()
    """How they become arrays."""
    splits: Splits = Splits()
    """Shares of training, validation and test."""
    error_budget: float = Field(default=0.02, ge=0)
    """Files that may be refused before the stage stops: below 1 a share of all files, from 1 on a number."""
    shard_rows: int = Field(default=4096, ge=1)
    """Rows of a Parquet shard."""
    parallelism: int | None = Runtime(None, ge=1)
    """Decoding tasks at once; the cluster's cores by default."""
    block_rows: int = Runtime(128, ge=1)
    """Files that a decoding task takes; a task costs about 0.1 s by itself."""
    run: RunOptions = Runtime(RunOptions(num_cpus=0.5))


@stage(
    PreprocessSpec,
    gives=Corpus,
    outside=lambda spec: source_of(spec.source).content_digest(spec.source),
    cpus=lambda spec: spec.run.num_cpus + CPUS_PER_TASK,
)
def preprocess(ctx: StageContext, spec: PreprocessSpec) -> dict[str, Any]:
    """Decode a source's pictures, captions and recordings into Parquet shards, and train a tokenizer."""
    from ..corpus import write_corpus  # Ray and Arrow load here, not in `plan`

    source = source_of(spec.source)
    try:
        folder = source.fetch(spec.source, ctx.cache, ctx.log)
        ctx.log(f"listing {folder}")
        info = write_corpus(ctx, spec, source.list_records(folder), folder)
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
