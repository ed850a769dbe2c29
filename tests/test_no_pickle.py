"""Nothing that someone hands in is unpickled: what is in a pickle runs when it is read."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path

import pytest
import torch

import eagleray
from eagleray.workflows.errors import EaglerayError

ROOT = Path(eagleray.__file__ or "").parent if eagleray.__file__ else Path(next(iter(eagleray.__path__)))
PACKAGES = ("actors", "cluster", "commands", "edge", "models", "pipelines", "workflows")
SOURCES = [*ROOT.glob("*.py"), *(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))]
MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
RESTRICTED = {"actors/training/unpickling.py", "actors/serving/moderating/reading.py"}
"""They know the few classes that they take."""
NEVER = {("dcp", "load"), ("dcp", "FileSystemReader"), ("yaml", "load"), ("yaml", "unsafe_load")}


def problems(text: str) -> list[str]:
    """What in a module's text would unpickle."""
    found: list[str] = []
    for node in ast.walk(ast.parse(text)):
        names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
        found += [name for name in names if name.partition(".")[0] in MODULES]
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        called = ast.unparse(node.func)
        given = {one.arg: ast.unparse(one.value) for one in node.keywords}
        if (
            (called == "torch.load" and given.get("weights_only") != "True")
            or (called in ("np.load", "numpy.load") and given.get("allow_pickle", "False") != "False")
            or tuple(called.split(".")) in NEVER
        ):
            found.append(called)
    return found


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from cloudpickle import loads",
        "import torch\ntorch.load(x)",
        "torch.load(x, weights_only=False)",
        "np.load(x, allow_pickle=True)",
        "dcp.load(x)",
        "yaml.load(x)",
    ],
)
def test_what_would_unpickle_is_seen(text: str) -> None:
    assert problems(text)


@pytest.mark.parametrize(
    "text", ["torch.load(x, weights_only=True)", "np.load(x)", "json.load(x)", "dcp.save(x)"]
)
def test_what_would_not_is_let_be(text: str) -> None:
    assert problems(text) == []


def test_no_source_unpickles_but_the_one_that_knows_what_it_takes() -> None:
    assert len(SOURCES) > 100
    found = {str(path.relative_to(ROOT)): problems(path.read_text()) for path in SOURCES}
    assert {path for path, seen in found.items() if seen} == RESTRICTED


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self._path,)


@pytest.mark.parametrize("kind", ["whole", "within", "entry"])
def test_code_in_a_checkpoint_is_refused_and_does_not_run(tmp_path: Path, kind: str) -> None:
    import torch.distributed.checkpoint as dcp

    from eagleray.actors.training.checkpoint import load_weights
    from eagleray.actors.training.unpickling import load_tensors

    ran, folder, model = tmp_path / "ran", tmp_path / "weights", torch.nn.Linear(2, 3)
    content = {"weight": model.weight, "bias": model.bias, "other": Evil(ran) if kind == "entry" else "plain"}
    dcp.save(content, checkpoint_id=folder, no_dist=True)
    table = folder / ".metadata"
    if kind == "entry":  # what is no tensor
        with pytest.raises(EaglerayError, match="more than tensors"):
            load_tensors({"other": ""}, folder, no_dist=True)
    else:
        metadata = pickle.loads(table.read_bytes())
        metadata.planner_data = Evil(ran)
        table.write_bytes(pickle.dumps(Evil(ran) if kind == "whole" else metadata))
        with pytest.raises(EaglerayError, match=r"can't be trusted") as error:
            load_weights(folder, model)
        assert error.value.where == str(table)
    assert not ran.exists()
    pickle.loads(pickle.dumps(Evil(ran)))
    assert ran.exists()  # it would have run


def test_an_honest_checkpoint_is_read_as_pytorch_does(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    from eagleray.actors.training.checkpoint import load_weights
    from eagleray.actors.training.unpickling import load_tensors

    saved, read = torch.nn.Linear(2, 3, dtype=torch.bfloat16), torch.nn.Linear(2, 3, dtype=torch.bfloat16)
    dcp.save(saved.state_dict(), checkpoint_id=tmp_path / "a", no_dist=True)
    assert load_weights(tmp_path / "a", read) == []
    assert torch.equal(saved.weight, read.weight)
    dcp.save({"number": 7, "text": "x"}, checkpoint_id=tmp_path / "b", no_dist=True)
    state = {"number": 0, "text": ""}
    load_tensors(state, tmp_path / "b", no_dist=True)
    assert state == {"number": 7, "text": "x"}
