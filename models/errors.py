"""What the models refuse."""

from __future__ import annotations


class TensorError(ValueError):
    """A tensor that no forward pass should see.

    Args:
        name: of the tensor: a batch's column, or a parameter's path.
        found: its shape, or what is wrong with it.
        expected: what it should have been.

    Attributes:
        name, found, expected: as given.
    """

    def __init__(self, name: str, found: str, expected: str) -> None:
        super().__init__(f"{name}: {found}; expected {expected}")
        self.name = name
        self.found = found
        self.expected = expected

    def __reduce__(self) -> tuple[type[TensorError], tuple[str, str, str]]:
        return type(self), (self.name, self.found, self.expected)
