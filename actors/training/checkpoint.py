"""Sharded checkpoints: written by any mesh, read by any other.

A training checkpoint has three folders of torch.distributed.checkpoint, `weights`, `optimizer` and `past`
(embeddings of earlier batches, and the model that makes them), and `ledger.json`, which says how many
records were used and proves which, and `precision.json`: what each layer computes in, the loss's scale, and
every change so far. A `Checkpoint` artifact has `weights`, `ledger.json`, `precision.json`, with
`precision.html` where formats changed, `checkpoint.json` (the model's spec and how its inputs are prepared)
and `tokenizer.json`.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from ...models.spec import ModelSpec, Task
from ...pipelines.ledger import LEDGER, Ledger, read_ledger
from ...pipelines.spec import Preparation
from ...workflows.errors import EaglerayError
from .spec import AdaptationSpec

PRECISION = "precision.json"
LIMITS = ".limits"
"""What names of limits end with; see `rounding`."""

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch import distributed as dist
    from torch.distributed.checkpoint.staging import DefaultStager

    from ...models.multimodal import MultimodalModel
    from .optimizer import LocalOptimizer
    from .zero import ZeroOptimizer


class CheckpointInfo(BaseModel):
    """`checkpoint.json`: what is needed to build the model and prepare its inputs."""

    model_config = ConfigDict(frozen=True)

    model: ModelSpec
    tasks: tuple[Task, ...]
    vocab_size: int
    classes: tuple[str, ...]
    preparation: Preparation
    step: int
    certified: bool = True
    """Whether every mesh that it was trained on was one process or had a certificate."""


class Snapshot:
    """A training checkpoint as it was after a step; training goes on while it is copied and written.

    What it is of changes with the next update of weights: `copied` must be done by then.

    Args:
        stager: copies tensors into memory of its own, which every copy takes.
        tensors: folder of the checkpoint → name → this worker's part.
        files: name → content of what all workers write alike.

    Attributes:
        copied: whether, and since when, it no longer depends on what it is of.
        written: the same of the checkpoint.
    """

    def __init__(
        self, stager: DefaultStager, tensors: Mapping[str, dict[str, Tensor]], files: Mapping[str, str]
    ) -> None:
        self._stager, self._tensors, self._files = stager, tensors, files
        self.copied: Future[None] = Future()
        self.written: Future[None] = Future()

    def write(self, folder: Path, group: dist.ProcessGroup | None = None) -> None:
        """Copy this worker's part, then write it; all workers call it together.

        Args:
            folder: of the checkpoint.
            group: that the workers agree over; beside training, one that it leaves alone.
        """
        import torch.distributed.checkpoint as dcp

        try:
            folder.mkdir(parents=True, exist_ok=True)
            copy = self._stager.stage(self._tensors)  # pyright: ignore[reportArgumentType]
            assert isinstance(copy, dict)
            self.copied.set_result(None)
            for name, tensors in copy.items():
                dcp.save(tensors, checkpoint_id=folder / name, process_group=group)
            for name, content in self._files.items():
                (folder / name).write_text(content)
        except BaseException as error:
            for done in (self.copied, self.written):
                if not done.done():
                    done.set_exception(error)
            raise
        self.written.set_result(None)


class Photographer:
    """Takes snapshots, one after the other."""

    def __init__(self) -> None:
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

        self._stager = DefaultStager(StagingOptions(False, False, False, False))
        self._last: Snapshot | None = None

    def take(
        self,
        module: nn.Module,
        optimizer: LocalOptimizer | ZeroOptimizer,
        past: dict[str, Tensor],
        files: Mapping[str, str],
    ) -> Snapshot:
        """Take all that a training goes on from, once the last one is written; all workers call it together.

        Args:
            module: this worker's part of the model.
            optimizer: of its parameters.
            past: what negatives of earlier batches need; a tensor of a name is the same on all workers.
            files: name → content, alike on all workers.

        Raises:
            OSError: when the last one could not be written.
        """
        from torch.distributed.checkpoint.state_dict import get_model_state_dict

        self.wait()
        weights: dict[str, Any] = get_model_state_dict(module)
        tensors: dict[str, dict[str, Tensor]] = {
            "weights": weights,
            "optimizer": optimizer.state(),
            "past": past,
        }
        self._last = Snapshot(self._stager, tensors, files)
        return self._last

    def wait_for_copy(self) -> None:
        """Return when weights may change."""
        if self._last is not None:
            self._last.copied.result()

    def wait(self) -> None:
        """Return when the last one is written.

        Raises:
            OSError: when it could not be.
        """
        if self._last is not None:
            self._last.written.result()


def load_state(
    folder: Path, module: nn.Module, optimizer: LocalOptimizer | ZeroOptimizer, past: dict[str, Tensor]
) -> Ledger:
    """Read this worker's part of a training checkpoint, `past` in place; returns what was used up to it."""
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    from .unpickling import load_tensors

    weights = get_model_state_dict(module)
    load_tensors(weights, folder / "weights")
    set_model_state_dict(module, weights)
    moments = optimizer.state()
    load_tensors(moments, folder / "optimizer")
    optimizer.load(moments)
    load_tensors(past, folder / "past")
    return read_ledger(folder / LEDGER)


def load_weights(folder: Path, module: nn.Module, fresh: Collection[str] = ()) -> list[str]:
    """Read a checkpoint's `weights` into a module, sharded or whole, of any mesh or none.

    Args:
        folder: of the weights.
        module: what they go into.
        fresh: paths of modules that are left as they are.

    Returns:
        Names of the parameters that the weights don't have, or that were left as they are.

    Raises:
        EaglerayError: when a tensor has another shape than the module's of that name.
    """
    import torch.distributed as dist
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        set_model_state_dict,
    )

    from .unpickling import load_tensors, read_table

    stored = read_table(folder).state_dict_metadata
    weights: dict[str, Any] = get_model_state_dict(module)
    left = [name for name in weights if name not in stored or any(is_below(name, path) for path in fresh)]
    for name in left:
        del weights[name]
    for name, tensor in weights.items():
        found = stored[name]
        if isinstance(found, TensorStorageMetadata) and found.size != tensor.shape:
            raise EaglerayError(
                f"{name} is {tuple(found.size)} in the checkpoint, {tuple(tensor.shape)} in the model",
                "give the model the checkpoint's sizes, or leave `model` out: they are taken over then",
                str(folder),
            )
    load_tensors(weights, folder, no_dist=not dist.is_initialized())
    set_model_state_dict(module, weights, options=StateDictOptions(strict=False))
    return left


def load_all_weights(folder: Path, module: nn.Module) -> None:
    """Read a checkpoint's `weights` into a module that has none beside them.

    Raises:
        EaglerayError: when the weights lack one of the module's, or have another shape.
    """
    if left := load_weights(folder, module):
        raise EaglerayError(
            f"the checkpoint has no {left[0]}, which the model has",
            "take a whole copy of it, or make it again",
            str(folder),
        )


def load_limits(folder: Path) -> dict[str, tuple[float, float]]:
    """What a training in sight of eight bits found: layer and `of_input` or `of_result` → limits of that.

    Args:
        folder: of a `Checkpoint` artifact.
    """
    import torch
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    from .unpickling import load_tensors, read_table

    stored = read_table(folder / "weights").state_dict_metadata
    found = {
        name: torch.zeros(2, dtype=one.properties.dtype)
        for name, one in stored.items()
        if name.endswith(LIMITS) and isinstance(one, TensorStorageMetadata)
    }
    if found:
        load_tensors(found, folder / "weights", no_dist=True)
    pairs = {name.removesuffix(LIMITS): tensor.tolist() for name, tensor in found.items()}
    return {name: (least, largest) for name, (least, largest) in pairs.items() if largest > least}


def is_below(name: str, path: str) -> bool:
    """Whether a parameter is that at a path in a model, or of the module there."""
    return name == path or name.startswith(f"{path}.")


def write_artifact(
    folder: Path, trained: Path, corpus: Path, info: CheckpointInfo, adaptation: AdaptationSpec | None = None
) -> None:
    """Make a `Checkpoint` artifact's content from a finished training checkpoint.

    Low-rank layers become a part of those they stand beside: whoever reads it finds a plain model.
    """
    if adaptation is not None and adaptation.lora is not None:
        _merge(trained / "weights", folder / "weights", info, adaptation)
    else:
        shutil.copytree(trained / "weights", folder / "weights")
    shutil.copyfile(trained / LEDGER, folder / LEDGER)
    if (trained / PRECISION).is_file():
        from .plotting import precision_page
        from .precision import PrecisionState

        state = PrecisionState.model_validate_json((trained / PRECISION).read_text())
        shutil.copyfile(trained / PRECISION, folder / PRECISION)
        if state.changes:
            (folder / "precision.html").write_text(precision_page(state, info.step), encoding="utf-8")
    if (corpus / "tokenizer.json").is_file():  # pictures alone have none
        shutil.copyfile(corpus / "tokenizer.json", folder / "tokenizer.json")
    (folder / "checkpoint.json").write_text(info.model_dump_json(indent=2))


def read_info(folder: Path) -> CheckpointInfo:
    """Read a `Checkpoint` artifact's `checkpoint.json`."""
    path = folder / "checkpoint.json"
    if not path.is_file():
        raise EaglerayError("this folder is no checkpoint: it has no checkpoint.json", where=str(folder))
    return CheckpointInfo.model_validate_json(path.read_text())


def check_tokenizer(checkpoint: Path, corpus: Path, where: str) -> None:
    """Refuse a corpus whose tokens mean something else than those that a checkpoint was trained on.

    Raises:
        EaglerayError: naming the input that mends it.
    """
    theirs, ours = (folder / "tokenizer.json" for folder in (checkpoint, corpus))
    if theirs.is_file() and (not ours.is_file() or ours.read_bytes() != theirs.read_bytes()):
        raise EaglerayError(
            "the corpus has another tokenizer than the checkpoint: the same text is other tokens",
            "give the corpus's preprocess stage `inputs: {tokenizer: CORPUS}`, the one of the pretraining",
            where,
        )


def load_model(folder: Path) -> MultimodalModel:
    """Build the model of a `Checkpoint` artifact in this process, whole and in eval mode."""
    from ...models.multimodal import MultimodalModel

    info = read_info(folder)
    model = MultimodalModel(info.model, info.vocab_size, len(info.classes), info.tasks)
    load_all_weights(folder / "weights", model)
    return model.eval()


def _merge(trained: Path, folder: Path, info: CheckpointInfo, adaptation: AdaptationSpec) -> None:
    import torch.distributed.checkpoint as dcp

    from ...models.multimodal import MultimodalModel
    from .adapting import adapt, merge

    model = MultimodalModel(info.model, info.vocab_size, len(info.classes), info.tasks)
    adapt(model, adaptation)
    load_all_weights(trained, model)
    merge(model)
    dcp.save(model.state_dict(), checkpoint_id=folder, no_dist=True)
