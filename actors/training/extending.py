"""Weights for a tokenizer that has more tokens: each new one begins as the mean of its pieces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...workflows.errors import EaglerayError
from .checkpoint import CheckpointInfo, load_all_weights


def pieces_between(checkpoint: Path, corpus: Path) -> list[list[int]]:
    """Ids of what each token consists of that a corpus's tokenizer has beyond a checkpoint's; none where the
    one is no extension of the other.
    """
    from tokenizers import Tokenizer

    from ...pipelines.media.text import pieces_of

    theirs, ours = (folder / "tokenizer.json" for folder in (checkpoint, corpus))
    if not (theirs.is_file() and ours.is_file()) or theirs.read_bytes() == ours.read_bytes():
        return []
    try:
        return pieces_of(Tokenizer.from_file(str(theirs)), Tokenizer.from_file(str(ours)))
    except Exception:  # of a file that holds no tokenizer `tokenizers` raises nothing narrower
        return []


def extend_weights(
    checkpoint: Path, folder: Path, info: CheckpointInfo, pieces: Sequence[Sequence[int]]
) -> None:
    """Write a checkpoint's weights with rows for new tokens; held in memory once, in this process.

    Args:
        checkpoint: folder of the artifact.
        folder: where the weights go.
        info: what the checkpoint says.
        pieces: see `pieces_between`.

    Raises:
        EaglerayError: where tokens stand by how frequent they are, and new ones have no place.
    """
    import torch
    import torch.distributed.checkpoint as dcp

    from ...models.multimodal import MultimodalModel

    if info.model.text is not None and info.model.text.adaptive_cutoffs:
        raise EaglerayError(
            "an adaptive softmax has tokens by how frequent they are: none can be added",
            "leave `terms` out, or pretrain a model without text.adaptive_cutoffs",
        )

    def build(tokens: int) -> MultimodalModel:
        return MultimodalModel(info.model, tokens, len(info.classes), info.tasks)

    model = build(info.vocab_size)
    load_all_weights(checkpoint / "weights", model)
    with torch.device("meta"):
        sizes = {name: one.shape for name, one in build(info.vocab_size + len(pieces)).state_dict().items()}
    weights = model.state_dict()
    for name, tensor in weights.items():
        if tensor.shape != sizes[name]:  # a row for each token
            rows = [tensor[list(some)].mean(dim=0) for some in pieces]
            weights[name] = torch.cat((tensor, torch.stack(rows)))
    dcp.save(weights, checkpoint_id=folder, no_dist=True)
