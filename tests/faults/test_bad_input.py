"""Readers of damaged files raise no exception but those that they document. The long run: ``tests/faults/fuzz.py``."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults.fuzz import fuzz
from tests.faults.mutations import mutated
from tests.faults.readers import READERS, Reader, corpus, undocumented

BRIEF = settings(
    max_examples=60, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize("name", READERS)
def test_valid_files_are_read(name: str, tmp_path: Path) -> None:
    for content in READERS[name].samples():
        READERS[name].read(content, tmp_path)


@pytest.mark.parametrize("name", [name for name in READERS if name != "report"])  # each takes half a second
@given(random=st.randoms(use_true_random=False))
@BRIEF
def test_damaged_files_raise_only_documented_errors(
    name: str, random: Random, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    error = undocumented(READERS[name], mutated(random, READERS[name].samples()), folder)
    if error is not None:
        raise error


@pytest.mark.parametrize(("name", "path"), corpus(), ids=str)
def test_what_was_found_once_stays_mended(name: str, path: Path, tmp_path: Path) -> None:
    error = undocumented(READERS[name], path.read_bytes(), tmp_path)
    if error is not None:
        raise error


def test_a_long_run_finds_counts_and_keeps_crashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # and back

    def read(content: bytes, folder: Path) -> None:
        if b"null" in content:
            raise KeyError("null")

    found = fuzz(Reader("toy", read, lambda: [b'{"a": 1}'], (ValueError,), 1.0), 500, 0, tmp_path)
    (kept,) = (tmp_path / "toy").iterdir()
    assert b"null" in kept.read_bytes()
    assert f"toy: 500 inputs, {found} crashes, 0 hangs" in capsys.readouterr().out
    assert found > 5
