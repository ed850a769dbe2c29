"""Stage `import-weights`: published weights become a checkpoint that the other stages take."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ...pipelines.files import Files
from ...pipelines.source import Place
from ...workflows.artifacts import Checkpoint
from ...workflows.errors import EaglerayError
from ...workflows.spec import Runtime, StageSpec
from ...workflows.stage import StageContext, stage


class ImportWeightsSpec(StageSpec):
    """Swin Transformer V2 as its authors or Hugging Face publish it, in safetensors."""

    kind: Literal["import-weights"] = "import-weights"
    path: Place = Runtime(...)
    """Folder with `*.safetensors` and, in Hugging Face's naming, `config.json`."""
    image_size: int | None = Field(None, ge=8)
    """Side of the pictures, pixels; the checkpoint's own by default."""
    window_size: int | None = Field(None, ge=1)
    """Side of a window, patches; the checkpoint's own by default. The position bias goes over by itself."""


def digest(spec: ImportWeightsSpec, cache: Path) -> str:
    """Digest of the folder's files."""
    return Files(str(spec.path), cache).digest()


@stage(ImportWeightsSpec, gives=Checkpoint, outside=digest)
def import_weights(ctx: StageContext, spec: ImportWeightsSpec) -> dict[str, Any]:
    """Read a published Swin V2 and write it as a checkpoint, to evaluate or to fine-tune."""
    from ...models.errors import TensorError
    from ..training.importing import write_checkpoint

    try:
        info = write_checkpoint(
            Path(spec.path), ctx.output, image_size=spec.image_size, window_size=spec.window_size
        )
    except FileNotFoundError as error:
        raise EaglerayError(str(error), "name the folder that they lie in", str(spec.path)) from None
    except TensorError as error:
        raise EaglerayError(
            f"the weights can't be read: {error}",
            "take a whole copy of a Swin Transformer V2, in its authors' naming or Hugging Face's",
            str(spec.path),
        ) from None
    assert info.model.vision is not None
    ctx.log(
        f"pictures of {info.model.vision.image_size} pixels, {len(info.classes)} categories, "
        f"windows of {info.model.vision.window_size}"
    )
    return {"classes": len(info.classes), "image_size": info.model.vision.image_size}
