"""A column store that grows row by row, in a few bytes for each value."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


class ColumnStore:
    """Columns of numbers, all of the same length.

    Args:
        kinds: name of each column -> type code of the module `array`: ``i`` and ``q`` are integers of 32 and 64 bits,
            ``d`` is a floating-point number of 64 bits.
    """

    def __init__(self, kinds: Mapping[str, str]) -> None:
        self._columns: dict[str, array[Any]] = {name: array(kind) for name, kind in kinds.items()}

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def __getitem__(self, name: str) -> array[Any]:
        return self._columns[name]

    def put(self, row: int, values: Iterable[float]) -> None:
        """Write one value into each column at ``row``, which is an existing row or the next one.

        Raises:
            IndexError: ``row`` is beyond the next row.
            ValueError: the number of values differs from the number of columns.
        """
        columns = self._columns.values()
        if row == len(self):
            for column, value in zip(columns, values, strict=True):
                column.append(value)
        else:
            for column, value in zip(columns, values, strict=True):
                column[row] = value

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Name -> column as an array that shares its memory with the store."""
        return {name: np.frombuffer(column, dtype=column.typecode) for name, column in self._columns.items()}
