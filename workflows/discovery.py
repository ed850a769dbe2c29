"""Finding what modules declare: stage kinds, sources, operators. One walk for all of them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from importlib.metadata import entry_points
from types import ModuleType
from typing import Protocol, TypeVar

from .errors import EaglerayError


class Declared(Protocol):
    """Something that a module declares under a name of its own."""

    @property
    def name(self) -> str:
        """What a spec calls it by."""
        ...

    @property
    def module(self) -> str:
        """The module that declares it."""
        ...


T = TypeVar("T", bound=Declared)


def discover(declared: type[T], what: str, packages: Sequence[str], group: str) -> dict[str, T]:
    """Find everything of a type that the modules of these packages and of extensions declare, by name.

    An extension is a distribution with an entry point in `group` that names a package of modules.

    Args:
        declared: the type.
        what: it is called that in an error: "stage kind".
        packages: names of packages to walk.
        group: entry points of extensions.

    Raises:
        EaglerayError: when two modules declare the same name, or an extension can't be imported.
    """
    modules = [module for package in packages for module in _modules(package)]
    for extension in entry_points(group=group):
        try:
            modules += _modules(extension.value)
        except Exception as error:  # another's code: any
            name = extension.dist.name if extension.dist else extension.name
            raise EaglerayError(
                f"the extension {name} can't be imported: {type(error).__name__}: {error}",
                f"mend it, or uninstall it: pip uninstall {name}",
                extension.value,
            ) from error
    found: dict[str, T] = {}
    for module in modules:
        for value in vars(module).values():
            if not isinstance(value, declared) or value.module != module.__name__:
                continue
            if found.setdefault(value.name, value) is not value:
                raise EaglerayError(
                    f"two modules declare the {what} {value.name!r}",
                    "rename one of them",
                    f"{found[value.name].module} and {module.__name__}",
                )
    return dict(sorted(found.items()))


def _modules(package: str) -> list[ModuleType]:
    found = importlib.import_module(package)
    names = [info.name for info in pkgutil.iter_modules(found.__path__, f"{package}.")]
    return [importlib.import_module(name) for name in names]
