"""Values that follow from the photos: a table whose rows begin at a number of them."""

from __future__ import annotations

from typing import Annotated, TypeAlias, TypeVar

from pydantic import AfterValidator

Value = TypeVar("Value")


def from_zero_on(table: dict[int, Value]) -> dict[int, Value]:
    """Validate that a table has a value for every number."""
    if min(table, default=None) != 0:
        raise ValueError("a table begins at 0, as {0: 500, 20000: 10000} does")
    return table


ByPhotos: TypeAlias = Value | Annotated[dict[int, Value], AfterValidator(from_zero_on)]


def value_at(table: Value | dict[int, Value], number: float) -> Value:
    """Return the one value that there is, or the table's for a number."""
    return row_at(table, number) if isinstance(table, dict) else table


def row_at(table: dict[int, Value], number: float) -> Value:
    """Return the value of the last row that begins at `number` or before."""
    return table[max(start for start in table if start <= number)]
