"""Why a test cannot run here: the runtimes that are not installed."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

import pytest

NO_OPENVINO = pytest.mark.skipif(
    find_spec("openvino") is None, reason="OpenVINO is not installed: pip install openvino"
)


def with_reasons(runtimes: Iterable[str]) -> list[Any]:
    """The names as parameters of a test, with a reason to skip those that may be absent."""
    return [pytest.param(name, marks=NO_OPENVINO) if name == "openvino" else name for name in runtimes]
