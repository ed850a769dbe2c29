"""Published checkpoints, read into our modules.

Swin Transformer V2 stands in two namings: that of `transformers` and that of the authors' repository, which
joins query, key and value in one matrix. Both are read from safetensors; what the weights' shapes don't say
(the picture's side, the window) comes from a `config.json` beside them, or from the caller.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .errors import TensorError
from .heads.classification import ClassificationHead
from .spec import VisionSpec
from .vision import PatchEmbedding, VisionEncoder

Weights = dict[str, Tensor]

HUGGING_FACE = (
    (r"^(?:swinv2\.)?embeddings\.patch_embeddings\.", "embed."),
    (r"^(?:swinv2\.)?embeddings\.norm\.", "embed.norm."),
    (r"^(?:swinv2\.)?encoder\.layers\.(\d+)\.blocks\.(\d+)\.", r"\1.\2."),
    (r"^(?:swinv2\.)?encoder\.layers\.(\d+)\.downsample\.", r"\1.merge."),
    (r"^(?:swinv2\.)?layernorm\.", "norm."),
    (r"^classifier\.", "classifier."),
    (r"attention\.self\.logit_scale$", "attention.logit_scale.weight"),
    (r"attention\.self\.continuous_position_bias_mlp\.0\.", "attention.position_bias.hidden."),
    (r"attention\.self\.continuous_position_bias_mlp\.2\.", "attention.position_bias.per_head."),
    (r"attention\.self\.(query|key|value)\.", r"attention.\1."),
    (r"attention\.output\.dense\.", "attention.output."),
    (r"layernorm_before\.", "norm_attention."),
    (r"layernorm_after\.", "norm_mlp."),
    (r"intermediate\.dense\.", "mlp.up."),
    (r"^(\d+\.\d+)\.output\.dense\.", r"\1.mlp.down."),
)
"""Pattern → ours, one after the other; SCALE.BLOCK and SCALE.merge become numbers in `blocks` at the end."""

AUTHORS = (
    (r"^patch_embed\.proj\.", "embed.projection."),
    (r"^patch_embed\.norm\.", "embed.norm."),
    (r"^layers\.(\d+)\.blocks\.(\d+)\.", r"\1.\2."),
    (r"^layers\.(\d+)\.downsample\.", r"\1.merge."),
    (r"^head\.", "classifier."),
    (r"attn\.logit_scale$", "attention.logit_scale.weight"),
    (r"attn\.cpb_mlp\.0\.", "attention.position_bias.hidden."),
    (r"attn\.cpb_mlp\.2\.", "attention.position_bias.per_head."),
    (r"attn\.q_bias$", "attention.query.bias"),
    (r"attn\.v_bias$", "attention.value.bias"),
    (r"attn\.qkv\.", "attention.qkv."),
    (r"attn\.proj\.", "attention.output."),
    (r"norm1\.", "norm_attention."),
    (r"norm2\.", "norm_mlp."),
    (r"mlp\.fc1\.", "mlp.up."),
    (r"mlp\.fc2\.", "mlp.down."),
)
TABLES = re.compile(r"(relative_coords_table|relative_position_index|attn_mask)$")
"""Buffers that the authors' repository saves with the weights."""


class SwinV2(nn.Module):
    """A published Swin Transformer V2: encoder, mean over the positions, classifier.

    Args:
        spec: sizes.
        num_classes: of the classifier; 0 for none.
    """

    def __init__(self, spec: VisionSpec, num_classes: int) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = VisionEncoder(spec)
        self.classifier = ClassificationHead(self.encoder.width, num_classes) if num_classes else None

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K) of pictures (B, 3, S, S); without a classifier, the mean hidden state (B, C)."""
        pooled = self.encoder(image).mean(dim=1)
        return pooled if self.classifier is None else self.classifier(pooled)


def load_swin_v2(
    folder: Path,
    *,
    image_size: int | None = None,
    window_size: int | None = None,
    pretrained_window_sizes: tuple[int, ...] | None = None,
) -> SwinV2:
    """Read a published Swin Transformer V2.

    Args:
        folder: has one or more `*.safetensors` and, in the naming of `transformers`, a `config.json`.
        image_size: side of the pictures, if other than the config's, pixels. Without a config, 256.
        window_size: side of a window, if other than the checkpoint's. The position bias goes over by itself:
            the offsets are scaled by the window that the weights were trained with (section 3.3).
        pretrained_window_sizes: windows of each scale that the weights were first trained with, if the
            checkpoint doesn't say.

    Returns:
        The module in eval mode; its `spec` has every size.

    Raises:
        FileNotFoundError: when there are no weights in the folder.
        TensorError: when the weights are no Swin Transformer V2, or a tensor has another shape than the rest
            asks for, by its name.
    """
    weights = read_safetensors(folder)
    if "patch_embed.proj.weight" in weights:
        named, found = _rename(weights, AUTHORS), _authors_sizes(weights)
    elif any(name.endswith("embeddings.patch_embeddings.projection.weight") for name in weights):
        named, found = _rename(weights, HUGGING_FACE), _config_sizes(folder)
    else:
        raise TensorError(
            next(iter(weights), "weights"),
            f"one of {len(weights)} tensors that are no Swin Transformer V2",
            "patch_embed.proj.weight or swinv2.embeddings.patch_embeddings.projection.weight among them",
        )
    was = found.get("window_size")
    given = {
        "image_size": image_size,
        "window_size": window_size,
        "pretrained_window_sizes": pretrained_window_sizes,
    }
    sizes: dict[str, Any] = {**found, **{k: v for k, v in given.items() if v is not None}}
    spec = VisionSpec.model_validate(_sizes_of(named) | sizes)
    if window_size not in (None, was) and not any(spec.pretrained_window_sizes):
        before = VisionSpec.model_validate({**_sizes_of(named), **found})
        spec = spec.model_copy(update={"pretrained_window_sizes": tuple(w for w, _ in before.windows)})
    module = SwinV2(
        spec, len(named["classifier.linear.weight"]) if "classifier.linear.weight" in named else 0
    )
    load_exactly(module, {_path(name, spec.depths): tensor for name, tensor in named.items()})
    return module.eval()


def fold_normalisation(embed: PatchEmbedding, mean: Tensor, std: Tensor) -> None:
    """Let an embedding that was trained on (p - mean) / std take pictures in [-1, 1], in place.

    Args:
        embed: of pictures whose values p were in [0, 1] before.
        mean: (3,).
        std: (3,).
    """
    projection = embed.projection
    assert projection.bias is not None
    with torch.no_grad():
        shift = (0.5 - mean) / std
        projection.bias += (projection.weight * shift[:, None, None]).sum(dim=(1, 2, 3))
        projection.weight *= (0.5 / std)[:, None, None]


def read_safetensors(folder: Path) -> Weights:
    """All tensors of a folder's safetensors, in fp32.

    Raises:
        FileNotFoundError: when there are none.
        TensorError: when a file can't be read.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"there is no *.safetensors in {folder}")
    weights: Weights = {}
    for path in files:
        try:
            weights |= load_file(path)
        except SafetensorError as error:
            raise TensorError(path.name, f"not readable ({error})", "a safetensors file") from None
    return {name: t.float() if t.is_floating_point() else t for name, t in weights.items()}


def load_exactly(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into a module that has exactly these names and shapes.

    Raises:
        TensorError: for the first that is missing, left over, of another shape, or not finite.
    """
    wanted = module.state_dict()
    for name, tensor in wanted.items():
        if name not in weights:
            raise TensorError(name, "missing", str(tuple(tensor.shape)))
    for name, tensor in weights.items():
        if name not in wanted:
            raise TensorError(name, f"a tensor of {tuple(tensor.shape)} that has no place", "none")
        if tensor.shape != wanted[name].shape:
            raise TensorError(name, f"shape {tuple(tensor.shape)}", str(tuple(wanted[name].shape)))
        if not tensor.isfinite().all():
            raise TensorError(name, f"shape {tuple(tensor.shape)} with NaN or infinity", "finite values")
    module.load_state_dict(dict(weights))


def _rename(weights: Weights, patterns: tuple[tuple[str, str], ...]) -> Weights:
    named: Weights = {}
    for name, tensor in weights.items():
        if TABLES.search(name):
            continue
        ours = name
        for pattern, replacement in patterns:
            ours = re.sub(pattern, replacement, ours)
        if ours.endswith("attention.qkv.weight"):
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                named[ours.replace("qkv", part)] = rows
        elif ours.startswith("classifier."):
            named[ours.replace("classifier.", "classifier.linear.")] = tensor
        else:
            named[ours] = tensor
    return named


def _path(name: str, depths: tuple[int, ...]) -> str:
    """`SCALE.BLOCK.…` and `SCALE.merge.…` as a path in `blocks`, where a merging stands between scales."""
    found = re.match(r"(\d+)\.(\d+|merge)\.", name)
    if found is None:
        return name if name.startswith("classifier.") else f"encoder.{name}"
    scale, block = int(found[1]), found[2]
    place = sum(depths[:scale]) + scale + (depths[scale] if block == "merge" else int(block))
    return f"encoder.blocks.{place}.{name[found.end() :]}"


def _sizes_of(named: Weights) -> dict[str, Any]:
    """What the shapes say."""
    blocks = [(int(m[1]), int(m[2])) for name in named if (m := re.match(r"(\d+)\.(\d+)\.", name))]
    depths = [0] * (1 + max((scale for scale, _ in blocks), default=-1))
    for scale, block in blocks:
        depths[scale] = max(depths[scale], block + 1)
    projection = named["embed.projection.weight"]
    try:
        heads = tuple(len(named[f"{scale}.0.attention.logit_scale.weight"]) for scale, _ in enumerate(depths))
        ratio = len(named["0.0.mlp.up.weight"]) / len(projection)
    except KeyError as error:
        raise TensorError(str(error.args[0]), "missing", "one in every block") from None
    return {
        "image_size": 256,
        "patch_size": projection.shape[-1],
        "embed_dim": len(projection),
        "depths": tuple(depths),
        "num_heads": heads,
        "mlp_ratio": ratio,
    }


def _config_sizes(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        return {}
    config = json.loads(path.read_text())
    sizes = {name: config[name] for name in ("image_size", "window_size") if config.get(name) is not None}
    if any(pretrained := config.get("pretrained_window_sizes") or ()):  # zeros say nothing
        sizes["pretrained_window_sizes"] = tuple(pretrained[: len(config["depths"])])
    return sizes


def _authors_sizes(weights: Weights) -> dict[str, Any]:
    """Windows as the tables tell them that are saved with the weights: (1, 2*window-1, 2*window-1, 2)."""
    windows: list[int] = []
    pretrained: list[int] = []
    while (table := weights.get(f"layers.{len(windows)}.blocks.0.attn.relative_coords_table")) is not None:
        window = (table.shape[1] + 1) // 2
        # the last is log2(1 + 8 * (window - 1) / (pretrained - 1)) / 3
        span = (2 ** (3 * table[0, -1, -1, 0].item()) - 1) / 8
        windows.append(window)
        pretrained.append(round(1 + (window - 1) / span) if span > 0 else window)
    if not windows:
        return {}
    sizes: dict[str, Any] = {"window_size": max(windows)}
    if pretrained != windows:
        sizes["pretrained_window_sizes"] = tuple(pretrained)
    # a scale whose map has more than one window saves the mask of its shifted windows: (windows, A, A)
    mask = weights.get("layers.0.blocks.1.attn_mask")
    if mask is not None:
        side = round(len(mask) ** 0.5) * windows[0]
        sizes["image_size"] = side * weights["patch_embed.proj.weight"].shape[-1]
    return sizes
