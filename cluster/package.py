"""This installation as something another machine can import."""

from __future__ import annotations

import shutil
from pathlib import Path

SUFFIXES = (".py", ".html", ".css", ".js")
NAME = __name__.partition(".")[0]


def package(folder: Path) -> Path:
    """Copy this code to `folder`, as a package that Ray ships to workers (`py_modules`).

    A wheel would not do: Ray installs one with all it requires, a second torch and a second Ray.
    """
    target = folder / NAME
    _copy(Path(__file__).resolve().parent.parent, target)
    return target


def _copy(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.suffix in SUFFIXES:
            shutil.copyfile(path, target / path.name)
        elif (path / "__init__.py").is_file():  # in a checkout there are tests and more besides packages
            _copy(path, target / path.name)
