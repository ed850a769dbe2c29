"""What a batch must be before any of it goes through a model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .errors import TensorError
from .spec import MODALITIES, ModelSpec


def check_batch(spec: ModelSpec, vocab_size: int, batch: Mapping[str, Tensor]) -> None:
    """Refuse a batch that the model can't mean anything by.

    Args:
        spec: of the model.
        vocab_size: of the tokenizer.
        batch: see `MultimodalModel.run_layers`.

    Raises:
        TensorError: naming the tensor, its shape and what was expected.
    """
    present = batch["present"]
    has = {m: present[:, i] for i, m in enumerate(MODALITIES)}
    if spec.vision is not None:
        image, side = batch["image"], spec.vision.image_size
        if min(image.shape[-2:]) < spec.vision.window_size:
            raise TensorError(
                "image", _shape(image), f"sides of {side}, at least a window of {spec.vision.window_size}"
            )
        _check_shape("image", image, (3, side, side))
        _check_finite("image", image, has["image"])
        if spec.vision.compares:
            _check_shape("reference", batch["reference"], (3, side, side))
            _check_finite("reference", batch["reference"], has["image"])
    if spec.audio is not None:
        mel, mask = batch["mel"], batch["mel_mask"]
        if mel.dim() != 3 or mel.shape[2] != spec.audio.n_mels or mel.shape[1] > spec.audio.max_frames:
            expected = f"(rows, 1 to {spec.audio.max_frames} frames, {spec.audio.n_mels} mel bins)"
            raise TensorError("mel", _shape(mel), expected)
        _check_some("mel_mask", mask, has["speech"], "a frame in every row that has speech")
        _check_finite("mel", mel.masked_fill(~mask.unsqueeze(-1), 0), has["speech"])
    if spec.text is not None:
        _check_tokens("tokens", batch["tokens"], vocab_size)
        _check_some("token_mask", batch["token_mask"], has["text"], "a token in every row that has a text")
    if "answer" in batch:
        _check_tokens("answer", batch["answer"], vocab_size)


def _check_shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape[1:]) != expected:
        raise TensorError(name, _shape(tensor), f"(rows, {', '.join(map(str, expected))})")


def _check_finite(name: str, tensor: Tensor, rows: Tensor) -> None:
    finite = tensor.flatten(1).isfinite().all(dim=1) | ~rows
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise TensorError(name, f"{_shape(tensor)} with NaN or infinity in row {row}", "finite values")


def _check_some(name: str, mask: Tensor, rows: Tensor, expected: str) -> None:
    empty = rows & ~mask.any(dim=1)
    if empty.any():
        raise TensorError(name, f"{_shape(mask)} with nothing in row {int(empty.nonzero()[0])}", expected)


def _check_tokens(name: str, tokens: Tensor, vocab_size: int) -> None:
    low, high = (int(tokens.min()), int(tokens.max())) if tokens.numel() else (0, 0)
    if low < 0 or high >= vocab_size:
        found = f"{_shape(tokens)} with token {low if low < 0 else high}"
        raise TensorError(name, found, f"tokens from 0 to {vocab_size - 1}")


def _shape(tensor: Tensor) -> str:
    return f"shape {tuple(tensor.shape)}"
