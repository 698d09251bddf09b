"""Convert records of earlier schema versions, and leave out values that do not fit."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import ValidationError
from pydantic_core import ErrorDetails

SCHEMA_VERSION: Literal[2] = 2
TITLES_1 = {
    "svd": "SVD",
    "arsvd": "ARSVD",
    "spatial_svd": "Spatial SVD",
    "tucker2": "Tucker-2",
    "htd": "HTD",
    "mixed": "Mixed",
}
"""Titles of the methods of version 1, whose records do not hold them."""
DECIDING = ("params", "macs", "size_bytes", "metrics")
TIMES = ("median_s", "iqr_s", "speedup", "baseline_median_s")


def migrate(values: Any) -> dict[str, Any]:
    """Convert the values of a record to the current version.

    Raises:
        ValueError: they are not a JSON object, or this reader does not know their version.
    """
    if not isinstance(values, dict):
        raise ValueError(f"a trial must be a JSON object, got {type(values).__name__}")
    if values.get("schema") == 1 and not isinstance(values["schema"], bool):
        values = _from_1(values)
    if values.get("schema") != SCHEMA_VERSION:
        known = f"this reader knows versions 1 to {SCHEMA_VERSION}"
        raise ValueError(f"schema version {values.get('schema')!r} is unknown; {known}")
    return values


def _from_1(values: dict[str, Any]) -> dict[str, Any]:
    """Add what version 2 adds: the method's name for users and its title in reports."""
    return {**values, **method_names_1(values.get("method"), values.get("rule")), "schema": 2}


def method_names_1(method: Any, rule: Any) -> dict[str, str]:
    """Return the method's name and title in reports of version 1: ``arsvd`` is ``svd`` with rule ``entropy``."""
    name = "arsvd" if (method, rule) == ("svd", "entropy") else str(method)
    return {"method_name": name, "method_title": TITLES_1.get(name, "")}


def without_misfits(values: dict[str, Any], error: ValidationError) -> dict[str, Any]:
    """Return ``values`` without those that ``error`` names.

    Raises:
        ValueError: a record is useless without one of these values. The message names the field.
    """
    found = error.errors(include_url=False)
    for each in found:
        _check_dispensable(each)
    fitted = _copied(values)
    for each in reversed(found):  # the last item of an array first, so that the others keep their positions
        _leave_out(fitted, each["loc"])
    return fitted


def _check_dispensable(found: ErrorDetails) -> None:
    place = found["loc"]
    name = ".".join(map(str, place))
    if found["type"] == "missing":
        raise ValueError(f"the field {name!r} is missing")
    first, second = [*place, None][:2]
    deciding = {"metrics": True, "baseline": second in DECIDING, "latency": second in TIMES}.get(str(first), False)
    if deciding or (len(place) == 1 and first != "git_commit"):
        allowed = found.get("ctx", {}).get("expected")
        why = f"it must be {allowed}" if allowed else "it is of another type or not finite"
        raise ValueError(f"the field {name!r} holds {reprlib.repr(found['input'])}; {why}")


def _copied(value: Any) -> Any:
    """Copy the objects and arrays of JSON. Other values cannot change."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _leave_out(values: dict[str, Any], place: Sequence[str | int]) -> None:
    """Remove the value at ``place``. A layer of a plan becomes a dense layer with the value as its reason."""
    parent: Any = values
    for step in place[:-1]:
        parent = parent[step]
    if place[0] == "plan" and len(place) == 2:
        parent[place[-1]] = {"dense": str(parent[place[-1]])}
    else:
        del parent[place[-1]]
