"""What is shipped to workers is this code, whole, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import eagleray
from eagleray.cluster.package import package

ROOT = Path(eagleray.__file__).parent


def test_every_sub_package_is_in_it_and_no_test(tmp_path: Path) -> None:
    made = package(tmp_path)
    found = {path.parent.relative_to(tmp_path).as_posix().replace("/", ".") for path in made.rglob("*.py")}
    declared = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    assert found == declared
    for path in made.rglob("*.py"):
        assert path.read_bytes() == (ROOT / path.relative_to(made)).read_bytes()


def test_a_copy_can_be_imported_and_copied_again(tmp_path: Path) -> None:
    package(tmp_path / "one")
    code = "import pathlib, eagleray.cluster.package as p; p.package(pathlib.Path('two')); print(p.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(tmp_path / "one")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(tmp_path / "one" / "eagleray" / "cluster" / "package.py")
    names = [
        sorted(p.relative_to(tmp_path / n).as_posix() for p in (tmp_path / n).rglob("*.py"))
        for n in ("one", "two")
    ]
    assert names[0] == names[1]
