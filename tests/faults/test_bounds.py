"""Files of strangers that claim an absurd size, ask for many copies, name code to run, or command the terminal."""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import analyze_results
import jsonify_logs
from common.compression import load_compressed
from common.data import load_data
from common.data.annotations import LeftOut, read_coco
from common.data.images import open_image
from common.data.mnist import load_mnist
from common.data.published import load_published
from common.files import read_bounded, replacing
from common.functions import named_function
from common.network.state import decoded
from common.reporting.runs import Log
from common.trials import TrialWriter
from tests.coco import write_set
from tests.faults.limits import limited
from tests.faults.test_hostile_files import saved, sparse
from tests.records import make_record

HUGE = 2**36
"""Bytes that a sparse file claims, more than the memory of the machines that run the tests."""


def read_image(folder: Path) -> None:
    open_image(sparse(folder / "x.png", HUGE))


def read_annotations(folder: Path) -> None:
    write_set(folder)
    sparse(folder / "train" / "_annotations.coco.json", HUGE)
    read_coco(folder, LeftOut())


def read_digits(folder: Path) -> None:
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            sparse(raw / f"{part}-{kind}-ubyte", HUGE)
    load_mnist(folder, download=False)


@pytest.mark.parametrize("read", [read_image, read_annotations, read_digits])
def test_a_file_larger_than_the_memory_is_refused(read: Callable[[Path], None], tmp_path: Path) -> None:
    with pytest.raises((ValueError, OSError), match=r"is larger than [\d,]+ bytes"):
        read(tmp_path)


def test_a_json_log_larger_than_the_memory_is_left_out(tmp_path: Path) -> None:
    log = Log(sparse(tmp_path / "r.json", HUGE))
    assert list(log.entries()) == []
    assert "r.json is larger than 1,073,741,824 bytes" in log.sentences()[0]


def test_a_published_file_of_absurd_size_is_altered_whatever_its_checksum(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    sparse(folder / "data_batch_1", HUGE)
    with pytest.raises(FileNotFoundError, match="data_batch_1 has another checksum"):
        load_published("CIFAR10", tmp_path, "cifar-10-batches-py", download=False)


def test_a_file_may_have_the_greatest_size_but_not_a_byte_more(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    assert read_bounded(tmp_path / "f", 5) == b"12345"
    with pytest.raises(ValueError, match="is larger than 4 bytes"):
        read_bounded(tmp_path / "f", 4)


def test_weights_larger_than_the_memory_are_refused(tmp_path: Path) -> None:
    header = b'{"w":{"dtype":"F32","shape":[17179869184],"data_offsets":[0,68719476736]}}'
    path = sparse(tmp_path / "w.safetensors", 8 + len(header) + HUGE)
    with path.open("r+b") as file:
        file.write(struct.pack("<Q", len(header)) + header)
    kind, message = limited(load_compressed, path, extra_bytes=2**28)
    assert (kind, "needs more memory than there is" in message) == ("ValueError", True)


@pytest.mark.filterwarnings("ignore")  # torch's, of quantized tensors
def test_a_stored_tensor_is_used_once() -> None:
    one = {"kind": "quantized", "dtype": "torch.qint8", "value": "a#0", "scale": 0.5, "zero_point": 1}
    many = {"kind": "list", "value": [one] * 2}
    with pytest.raises(ValueError, match="not the state of a module: KeyError"):
        decoded(many, {"a#0": torch.zeros(8, dtype=torch.int8)})
    assert len(decoded({**many, "value": [one]}, {"a#0": torch.zeros(8, dtype=torch.int8)})) == 1


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a function in a module that must never be imported."""
    (tmp_path / "a_trap.py").write_text("def spring(**_):\n    return None\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "a_trap:spring"


def test_a_function_that_a_file_names_is_never_run(trap: str, tmp_path: Path) -> None:
    builder = {"name": trap, "arguments": {"num_classes": 2}}
    with pytest.raises(ValueError, match="model='a_trap:spring' is unknown"):
        load_compressed(saved(tmp_path / "w.safetensors", builder=builder))
    with pytest.raises(ValueError, match="='a_trap:spring' is unknown"):
        load_data(trap)  # as a worker does with the name that a study holds
    assert "a_trap" not in sys.modules
    named_function("network", trap)()
    assert sys.modules.pop("a_trap")


@pytest.mark.parametrize("name", ["..x:f", ".x:f", ":f", "os:", "os:path", "a b:c", "os.path:join:x", "x\0:f"])
def test_a_name_of_no_function_is_refused_in_a_sentence(name: str) -> None:
    with pytest.raises(ValueError, match=r"^network='"):
        named_function("network", name)


COMMANDS = "\x1b]0;mine\x07\x1b[2J\x9b31m\u202e"
"""Sets a terminal's title, clears it, changes its colour, and reverses what follows."""


def test_a_log_commands_no_terminal_and_names_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs, out = tmp_path / "logs", tmp_path / "out"
    with TrialWriter(logs, "r") as writer:
        for number, status in enumerate(("ok", "failed")):
            details: dict[str, Any] = {"study": f"../../x\n{COMMANDS}{'y' * 300}"}
            names = dict.fromkeys(("model", "dataset", "method", "method_title", "rule", "error"), COMMANDS)
            writer.write(make_record(run="r", trial=number, status=status, details=details, **names))
        with writer.path.open("a") as file:
            file.write(f'TRIAL {{"schema": {json.dumps(COMMANDS)}}}\nTRIAL {COMMANDS}\n')
    assert jsonify_logs.main([str(logs), "--out", str(out)]) == 0
    assert analyze_results.main([str(logs), "--out", str(out), "--format", "csv"]) == 0
    assert analyze_results.main([str(logs), "--model", COMMANDS, "--method", "\x1b[0m", "--out", str(out)]) == 2
    shown = capsys.readouterr()
    for stream in shown:
        assert not set(stream) & set("\x1b\x07\x9b\u202e")
    assert r"\x1b[2J\x9b31m\u202e" in shown.out
    (made,) = out.glob("*.json")
    assert made.name.startswith("_.._x__]0;mine__[2J")
    assert len(os.fsencode(made.name)) < 220
    assert len(json.loads(made.read_bytes())["trials"]) == 2


def test_what_killed_processes_left_half_written_is_removed_after_an_hour(tmp_path: Path) -> None:
    dead, path = 2**22 + 1, tmp_path / "w.safetensors"  # Linux has no greater number of a process than 2^22
    left = [tmp_path / f".{path.name}.{number}.partial" for number in (dead, dead + 1, os.getppid())]
    others = [tmp_path / f".other.{dead}.partial", tmp_path / f".{path.name}.x.partial"]
    for folder in (*left, *others):
        folder.mkdir()
        (folder / ".tmp12").write_bytes(b"half")
        if folder != left[1]:
            os.utime(folder, (time.time() - 4000,) * 2)
    with replacing(path) as partial:
        partial.write_bytes(b"whole")
    assert {each.name for each in tmp_path.iterdir()} == {each.name for each in (*left[1:], *others, path)}
