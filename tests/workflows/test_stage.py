from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from workflow_harness import KINDS, PACKAGES

from eagleray.session import STAGE_PACKAGES
from eagleray.workflows.artifacts import Corpus
from eagleray.workflows.errors import EaglerayError
from eagleray.workflows.spec import StageSpec
from eagleray.workflows.stage import discover_kinds, stage

STAGE = """\
from typing import Literal
from eagleray.workflows.artifacts import Corpus
from eagleray.workflows.spec import StageSpec
from eagleray.workflows.stage import stage

class S(StageSpec):
    kind: Literal[{kind!r}] = {kind!r}

@stage(S, gives=Corpus)
def function(ctx, spec):
    '''Do it.

    And more.
    '''
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes a package of these modules and gives its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, **modules: str) -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
        for module, text in modules.items():
            (tmp_path / name / f"{module}.py").write_text(text)
        return name

    return write


def install(tmp_path: Path, name: str, value: str) -> None:
    """What an installed distribution with an entry point looks like."""
    folder = tmp_path / f"{name}-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(f"[eagleray.stages]\nmine = {value}\n")


def test_a_new_kind_is_one_new_file(package: Callable[..., str]) -> None:
    name = package("one_kind", first=STAGE.format(kind="first"))
    assert list(discover_kinds([name])) == ["first"]
    assert set(discover_kinds([*PACKAGES, name])) == {*KINDS, "first"}


def test_a_kind_takes_its_help_from_the_first_line_of_its_function(package: Callable[..., str]) -> None:
    assert discover_kinds([package("helped", first=STAGE.format(kind="first"))])["first"].summary == "Do it."


def test_a_kind_that_is_imported_by_another_module_is_found_once(package: Callable[..., str]) -> None:
    other = "from importing.first import function\nagain = function\n"
    found = discover_kinds(
        [package("importing", first=STAGE.format(kind="first") + "alias = function\n", other=other)]
    )
    assert list(found) == ["first"]


def test_two_modules_that_declare_one_kind_are_refused_by_name(package: Callable[..., str]) -> None:
    name = package("twice", a=STAGE.format(kind="same"), b=STAGE.format(kind="same"))
    with pytest.raises(EaglerayError, match=r"twice\.a and twice\.b.*the stage kind 'same'"):
        discover_kinds([name])


def test_another_distribution_brings_kinds_of_its_own(package: Callable[..., str], tmp_path: Path) -> None:
    install(tmp_path, "more-kinds", package("extension", first=STAGE.format(kind="first")))
    assert "first" in discover_kinds(PACKAGES)
    assert "first" in discover_kinds([*PACKAGES, "extension"])  # found both ways, it is still one


def test_an_extension_that_can_not_be_imported_is_named(package: Callable[..., str], tmp_path: Path) -> None:
    install(tmp_path, "broken-kinds", package("broken", first="import nothing_of_this_name\n"))
    with pytest.raises(EaglerayError, match="broken-kinds can't be imported: ModuleNotFoundError"):
        discover_kinds(PACKAGES)


def test_a_spec_without_a_kind_is_refused_where_it_is_declared() -> None:
    with pytest.raises(TypeError, match="StageSpec needs a field such as"):
        stage(StageSpec, gives=Corpus)


def test_an_error_survives_the_way_from_another_process() -> None:
    error = pickle.loads(pickle.dumps(EaglerayError("cause", "remedy", "where", retryable=True)))
    assert (error.cause, error.remedy, error.where, error.retryable) == ("cause", "remedy", "where", True)
    assert str(error) == "where: cause\n  → remedy"
    assert str(EaglerayError("cause")) == "cause"


MODULES = [
    path.stem for path in (Path(__file__).parents[2] / "workflows").glob("*.py") if path.stem != "__init__"
]
IMPORTS = "\n".join(f"import eagleray.workflows.{name}" for name in MODULES)
DISCOVERY = f"from eagleray.workflows.stage import discover_kinds; assert discover_kinds({STAGE_PACKAGES!r})"


@pytest.mark.parametrize(
    "code",
    [IMPORTS, DISCOVERY, "command = ['--help']"],
    ids=["kernel", "discovery", "help"],
)
def test_neither_ray_nor_torch_is_loaded_before_something_runs(code: str) -> None:
    program = f"""
import sys
command = None
{code}
if command:
    from eagleray import cli
    sys.argv = ["eagleray", *command]
    try:
        cli.main()
    except SystemExit as end:
        assert not end.code, end.code
print("LOADED", sorted({{"ray", "torch"}} & set(sys.modules)))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.endswith("LOADED []\n")
