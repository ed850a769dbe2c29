"""Opening a bundle at the edge, and trying one in a process of its own, which it may end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..pipelines.assessing.answers import check_answer
from ..pipelines.assessing.pictures import PictureAssessor
from ..pipelines.assessing.windows import OVERLAP_SHARE
from ..pipelines.bundle import bundle_digest, load_bundle
from ..pipelines.spec import Form
from ..workflows.errors import EaglerayError

TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Options:
    """How a bundle is run.

    Attributes:
        form: of its graphs; None is single precision.
        threads: of a graph.
        overlap_share: of a window that its neighbour sees too.
    """

    form: Form | None = None
    threads: int = 1
    overlap_share: float = OVERLAP_SHARE


@dataclass(frozen=True)
class Opened:
    """A bundle that answers.

    Attributes:
        digest: of the bundle.
        assessor: that it assesses pictures with.
    """

    digest: str
    assessor: PictureAssessor


def open_tried(folder: Path, options: Options) -> Opened:
    """Open a bundle, and see whether it answers as it did when it was exported.

    Raises:
        EaglerayError: when it doesn't, or doesn't assess pictures.
    """
    bundle = load_bundle(folder, options.form, options.threads)
    if "picture" not in bundle.info.assesses:
        raise EaglerayError(
            "the bundle doesn't assess pictures",
            "export a model that was trained with a weight for objective.segmentation, without `slicing`",
            str(folder),
        )
    check_answer(bundle)
    return Opened(bundle_digest(folder), PictureAssessor(bundle, overlap_share=options.overlap_share))


def try_apart(folder: Path, options: Options) -> None:
    """Do as `open_tried`, in another process.

    Raises:
        EaglerayError: when that fails, is ended by a signal, or takes too long.
    """
    words = [sys.executable, "-m", __name__, str(folder), options.form or "", str(options.threads)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise EaglerayError(f"the bundle's trial took over {TIMEOUT_S:.0f} s", where=str(folder)) from None
    if done.returncode < 0:
        raise EaglerayError(
            f"the bundle's trial was ended by signal {-done.returncode}",
            "export it for this device, or give the device more memory",
            str(folder),
        )
    if done.returncode:
        raise EaglerayError(f"the bundle failed its trial: {done.stderr.strip()}")


def _main(folder: str, form: str, threads: str) -> int:
    try:
        open_tried(Path(folder), Options(form or None, int(threads)))  # pyright: ignore[reportArgumentType]
    except EaglerayError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


Try = Callable[[Path, Options], None]

if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
