"""Arrays and texts out of a joblib file, without running anything that is in it.

joblib writes a pickle whose arrays lie beside it as bytes. A pickle may name any function to be called when
it is loaded; here each name is looked up in a table of five that do nothing but hold what they are given,
and any class of scikit-learn is one of them. So what a package holds is read as data, whoever wrote it, and
scikit-learn need not be loaded, nor be of the version that wrote the file.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import numpy as np


class Held(SimpleNamespace):
    """Holds what an object's state was."""

    def __init__(self, *_: object) -> None:
        super().__init__()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


class _Reader(pickle.Unpickler):
    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)

        class Array(Held):
            """An array, whose bytes come next in the file; `Unpickler` has read no further than here, since
            the file isn't buffered and each stretch of the pickle tells its length.
            """

            def __setstate__(self, state: dict[str, Any]) -> None:
                dtype: np.dtype[Any] = state["dtype"]
                if dtype.hasobject:
                    raise pickle.UnpicklingError("an array of objects")
                file.read(file.read(1)[0])  # up to where it is aligned
                count = int(np.prod(state["shape"]))
                flat = np.frombuffer(file.read(count * dtype.itemsize), dtype)
                self.array = flat.reshape(state["shape"], order=state["order"])

        self._known: dict[tuple[str, str], Any] = {
            ("joblib.numpy_pickle", "NumpyArrayWrapper"): Array,
            ("numpy", "ndarray"): Held,
            ("numpy", "float64"): Held,
            ("numpy", "dtype"): np.dtype,
            ("numpy._core.multiarray", "scalar"): lambda dtype, data: np.frombuffer(data, dtype)[0],
        }

    def find_class(self, module: str, name: str, /) -> Any:  # noqa: ANN401 - pickle's
        if module.startswith("sklearn."):
            return Held
        try:
            return self._known[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is none of those that are known") from None


def read_joblib(path: Path) -> Held:
    """Read an object of scikit-learn as what it holds.

    Raises:
        ValueError: when the file holds anything else.
    """
    with path.open("rb", buffering=0) as file:
        try:
            found = _Reader(file).load()
        except (pickle.UnpicklingError, EOFError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{path.name} can't be read: {error}") from None
    if not isinstance(found, Held):
        raise ValueError(f"{path.name} holds no object of scikit-learn")
    return found
