"""A page shows what each layer computed in, step by step."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from eagleray.actors.training.checkpoint import PRECISION, CheckpointInfo, write_artifact
from eagleray.actors.training.plotting import NAMES, WIDTH, precision_page
from eagleray.actors.training.precision import Change, PrecisionState
from eagleray.models.spec import ModelSpec
from eagleray.pipelines.spec import Preparation

STEPS = 100
STATE = PrecisionState(
    formats={"vision.blocks.0": "fp32", "text.blocks.1": "bf16", "heads": "fp16"},
    changes=(
        Change(step=20, layer="vision.blocks.0", before="bf16", after="fp16", why="an update is 0.05 of <b>"),
        Change(step=60, layer="vision.blocks.0", before="fp16", after="fp32", why="its gradient overflows"),
        Change(step=40, layer="heads", before="bf16", after="fp16", why="an update is 0.02"),
    ),
)


def spans(page: str) -> dict[str, list[tuple[str, float]]]:
    """Layer → what it computed in, and for which part of the steps."""
    drawing = ET.fromstring(re.search("<svg.*?</svg>", page, re.DOTALL).group())
    found: dict[str, list[tuple[str, float]]] = {}
    for shape in drawing.iter("rect"):
        layer = shape.find("title").text.partition(":")[0]
        part = (float(shape.get("width")) + 1) / (WIDTH - NAMES)
        found.setdefault(layer, []).append((shape.get("class"), round(part, 2)))
    return found


def test_a_line_for_each_layer_shows_its_formats_by_step():
    page = precision_page(STATE, STEPS)
    assert spans(page) == {
        "vision.blocks.0": [("bf16", 0.2), ("fp16", 0.4), ("fp32", 0.4)],
        "text.blocks.1": [("bf16", 1.0)],
        "heads": [("bf16", 0.4), ("fp16", 0.6)],
    }
    assert "an update is 0.05 of &lt;b&gt;" in page


def test_a_checkpoint_keeps_what_its_layers_computed_in(tmp_path):
    trained, corpus = tmp_path / "trained", tmp_path / "corpus"
    (trained / "weights").mkdir(parents=True)
    (trained / "ledger.json").write_text("{}")
    info = CheckpointInfo(
        model=ModelSpec(), tasks=(), vocab_size=1, classes=(), preparation=Preparation(), step=STEPS
    )
    for name, state in (("moved", STATE), ("still", PrecisionState(formats={"heads": "bf16"}))):
        (trained / PRECISION).write_text(state.model_dump_json())
        (tmp_path / name).mkdir()
        write_artifact(tmp_path / name, trained, corpus, info)
        assert PrecisionState.model_validate_json((tmp_path / name / PRECISION).read_text()) == state
    assert (tmp_path / "moved" / "precision.html").read_text() == precision_page(STATE, STEPS)
    assert not (tmp_path / "still" / "precision.html").exists()
