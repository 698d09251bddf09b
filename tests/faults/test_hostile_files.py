"""Files from strangers: they run no code, leave no folder, take no absurd memory, and nothing follows their links.

Each test fails where the check that it names is taken away.
"""

from __future__ import annotations

import ast
import json
import os
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
from PIL import EpsImagePlugin, Image

from common.compression import load_compressed, save_compressed
from common.data.annotations import LeftOut, read_coco
from common.data.coco_images import read_images
from common.data.images import open_image
from common.data.masks import region_mask
from common.files import replacing
from common.latency.cache import current_conditions, read_table
from common.latency.operations import Operation
from common.latency.table import LatencyTable
from common.models import build_model
from common.search.study import journal as journal_module
from common.search.study.specification import StudySpecification
from common.search.study.storage import open_storage, open_study
from common.search.study.worker import load_data_for
from common.trials import TrialWriter, log_path, read_log
from common.trials import log as log_module
from tests.coco import (
    json_of,
    write_annotations,
    write_set,
)
from tests.faults.limits import limited
from tests.records import make_record

ROOT = Path(__file__).parents[2]
SECRET = b"the secret of another folder"


def saved(path: Path, **changes: object) -> Path:
    """Save a U-Net, with other metadata."""
    save_compressed(build_model("unet", 1, width=4, depth=1), path)
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    metadata |= {key: value if isinstance(value, str) else json.dumps(value) for key, value in changes.items()}
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, metadata)
    return path


def unet(**arguments: object) -> dict[str, object]:
    return {"name": "unet", "arguments": {"num_classes": 1, "width": 4, "depth": 1} | arguments}


def planned(method: str, *ranks: float) -> dict[str, object]:
    return {"method": method, "rule": "fixed", "layers": {"merge.0.0": {"method": method, "ranks": ranks}}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"builder": unet(width=1024, depth=4)}, r"has [\d,]+ bytes, more than"),
        ({"builder": unet(width=65_536, depth=40)}, "depth=40: it must be at most 16"),
        ({"builder": unet(depth=10**7)}, "depth=10000000 is above 65536"),
        ({"builder": unet(width=2**62)}, "is above 65536"),
        ({"builder": unet(num_classes=[1])}, "cannot be built"),
        ({"plan": planned("svd", 8 * 4 * 9)}, r"svd allows at most \(4,\)"),
        ({"plan": planned("tucker2", 10**9, 1)}, r"each at least 1|allows at most"),
        ({"plan": planned("svd", float("inf"))}, "does not describe a network: OverflowError"),
        ({"plan": "[" * 100_000}, "does not describe a network: RecursionError"),
    ],
)
def test_a_checkpoint_of_absurd_size_is_refused_before_it_takes_memory(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    kind, message = limited(load_compressed, saved(tmp_path / "w.safetensors", **changes), extra_bytes=2**28)
    assert kind == "ValueError"
    assert re.search(said, message), message


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**60) + b"{}",
        *(
            struct.pack("<Q", len(header)) + header + bytes(4)
            for header in (
                b'{"w":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4]}}',
                b'{"w":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,4]}}',
                b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,1099511627776]}}',
            )
        ),
    ],
)
def test_a_declared_shape_takes_no_memory(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    assert limited(load_compressed, path, extra_bytes=2**28)[0] == "ValueError"


def test_weights_of_whole_numbers_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.safetensors")
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = {name: tensor.long() for name, tensor in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match=r"does not fit the network: .* holds torch\.int64"):
        load_compressed(path)


def used_names(path: Path) -> dict[str, list[ast.Call]]:
    """Called function, as written -> its calls in a file."""
    found: dict[str, list[ast.Call]] = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            found.setdefault(ast.unparse(node.func), []).append(node)
    return found


def test_no_reader_can_run_code_from_a_file() -> None:
    shipped = [
        *ROOT.glob("*.py"),
        *(p for d in ("common", "finetuned", "notebooks") for p in (ROOT / d).rglob("*.py")),
    ]
    assert len(shipped) > 100
    unsafe = re.compile(
        r"(eval|exec|compile|__import__|(c?pickle|dill|joblib|marshal|shelve)\..*|yaml\.load|np\.load|.*import_module)"
    )
    for path in shipped:
        for name, calls in used_names(path).items():
            # Only named_function() imports: a module that its caller, never a file, names as module:function.
            called = path == ROOT / "common/functions.py" and name == "importlib.import_module"
            assert called or not unsafe.fullmatch(name), f"{path} calls {name}"
            if name == "torch.load":
                assert path == ROOT / "common/training/loop.py"  # train() reads its own checkpoint
                for call in calls:
                    assert [
                        k.value.value
                        for k in call.keywords
                        if k.arg == "weights_only" and isinstance(k.value, ast.Constant)
                    ] == [True]


@pytest.mark.parametrize("run", ["../x", "a/b", "/tmp/x", "..", ".", "", "a\0b", "x/", "a\nb", "\x1b[2J", "\x9b"])
def test_a_name_of_a_run_never_leaves_the_folder_of_the_logs(run: str, tmp_path: Path) -> None:
    for way in (lambda: log_path(tmp_path / "logs", run), lambda: TrialWriter(tmp_path / "logs", run)):
        with pytest.raises(ValueError, match=r"cannot name a file"):
            way()
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_through_a_link_or_into_a_pipe(tmp_path: Path) -> None:
    logs, secret = tmp_path / "logs", tmp_path / "secret"
    logs.mkdir()
    secret.write_bytes(SECRET)
    (logs / "r.log").symlink_to(secret)
    with pytest.raises(ValueError, match=r"r\.log is a link to another file"):
        TrialWriter(logs, "r")
    os.mkfifo(logs / "p.log")
    with pytest.raises(ValueError, match=r"p\.log is no regular file"):
        TrialWriter(logs, "p")
    own = tmp_path / "own.journal"
    open_study("s", open_storage(own), ["maximize"])
    before = own.read_bytes()
    (logs / "s.journal").symlink_to(own)
    with pytest.raises(ValueError, match=r"s\.journal is a link to another file"):
        open_storage(logs / "s.journal")
    (logs / "dangling.journal").symlink_to(tmp_path / "new")
    with pytest.raises(ValueError, match=r"dangling\.journal is a link"):
        open_storage(logs / "dangling.journal")
    (logs / "w").symlink_to(secret)
    (logs / f".w.{os.getpid()}.partial").symlink_to(secret)
    with replacing(logs / "w") as partial:
        partial.write_text("new")
    assert not (logs / "w").is_symlink()
    assert (secret.read_bytes(), own.read_bytes(), (tmp_path / "new").exists()) == (SECRET, before, False)


def test_an_endless_line_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "MOST_BYTES", 10_000)
    with TrialWriter(tmp_path, "resnet18-cifar10") as writer:
        writer.write(make_record())
        with writer.path.open("ab") as file:
            file.write(b"TRIAL " + bytes(123_456) + b"\n")
        writer.write(make_record(trial=1))
    records, skipped = read_log(writer.path)
    assert [record.trial for record in records] == [0, 1]
    assert [str(each).partition(": ")[2] for each in skipped] == ["the line is longer than 10,000 bytes"]
    entries = list(log_module.iter_entries(writer.path, []))
    whole = writer.path.read_bytes()
    assert all(whole[entry.offset :].startswith(b'{"run": "resnet18') for entry in entries)


def sparse(path: Path, size: int) -> Path:
    """A file of zeros that takes no disk."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


def test_a_huge_log_and_a_huge_table_take_no_memory(tmp_path: Path) -> None:
    kind, found = limited(read_log, sparse(tmp_path / "r.log", 2**28), extra_bytes=2**27)
    assert (kind, "is longer than 16,777,216 bytes" in found) == ("", True)
    conditions = current_conditions("eager", 1)
    kind, found = limited(read_table, sparse(tmp_path / "t.json", 2**31), conditions, extra_bytes=2**28)
    assert (kind, "is larger than 67,108,864 bytes" in found) == ("UserWarning", True)


def test_a_journal_with_an_endless_line_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "MOST_BYTES", 1000)
    path = tmp_path / "s.journal"
    open_study("s", open_storage(path), ["maximize"])
    with path.open("ab") as file:
        file.write(journal_module.OPENING + b"1" * 5000)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"is damaged in line \d: it is longer than 1,000 bytes"):
        open_storage(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("operation", "said"),
    [
        (Operation((2**20, 2**20), (9, 9), (8, 8), (8, 8)), "is absurdly large"),
        (Operation((3, 3), (3, 3), (2**20, 2**20), (8, 8)), "is absurdly large"),
        (Operation((3, 3), (3, 3), (8, 8), (2**40, 1)), "is absurdly large"),
        (Operation((0, 3), (3, 3), (8, 8), (8, 8)), "is impossible"),
        (Operation((4, 4), (3, 3), (8, 8), (8, 8), groups=3), "is impossible"),
    ],
)
def test_a_latency_table_never_makes_the_suite_time_absurd_operations(
    operation: Operation, said: str, tmp_path: Path
) -> None:
    conditions = current_conditions("eager", 1)
    path = tmp_path / "t.json"
    path.write_text(json.dumps(LatencyTable(conditions, {operation: 1.0}).to_json()))
    with pytest.warns(UserWarning, match=said):
        assert read_table(path, conditions).seconds == {}


@pytest.mark.parametrize("name", ["../../secret.png", "{root}/secret.png", "link.png", "linked/secret.png"])
def test_images_outside_a_coco_set_are_not_read(name: str, tmp_path: Path) -> None:
    Image.new("L", (20, 20), 77).save(tmp_path / "secret.png")
    write_set(tmp_path / "set", train=40)
    folder = tmp_path / "set" / "train"
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "linked").symlink_to(tmp_path, target_is_directory=True)
    content = json_of(folder)
    content["images"][0]["file_name"] = name.format(root=tmp_path)
    write_annotations(folder, content)
    left_out = LeftOut()
    files, classes = read_coco(tmp_path / "set", left_out)
    images, _, readable = read_images(files["train"], range(40), classes, 10, left_out)
    assert readable.tolist() == [False] + [True] * 39
    assert not (images == 77).flatten(1).all(1).any()


def test_the_folders_of_a_coco_set_may_be_links(tmp_path: Path) -> None:
    write_set(tmp_path / "elsewhere")
    (tmp_path / "set").mkdir()
    for part in ("train", "valid", "test"):
        (tmp_path / "set" / part).symlink_to(tmp_path / "elsewhere" / part, target_is_directory=True)
    left_out = LeftOut()
    files, classes = read_coco(tmp_path / "set", left_out)
    assert read_images(files["train"], range(10), classes, 10, left_out)[2].all()


def png_header(width: int, height: int) -> bytes:
    """A PNG that states a size and holds next to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("limit", [Image.MAX_IMAGE_PIXELS, None])
def test_an_image_of_absurd_size_is_broken(limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)  # other code in the process may lift Pillow's own limit
    (tmp_path / "huge.png").write_bytes(png_header(100_000, 100_000))
    with pytest.raises(OSError, match=r"huge\.png is not a complete image"):
        open_image(tmp_path / "huge.png")


def test_a_length_that_an_image_declares_takes_no_memory(tmp_path: Path) -> None:
    found = Path(__file__).parent / "corpus" / "image" / "a-chunk-longer-than-the-file"
    (tmp_path / "long.png").write_bytes(found.read_bytes())
    assert limited(open_image, tmp_path / "long.png", extra_bytes=2**28)[0] == "OSError"


def test_an_image_never_starts_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "script.png", format="EPS")
    started: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *values, **_: started.append(values))
    with pytest.raises(OSError, match=r"script\.png is not a complete image"):
        open_image(tmp_path / "script.png")
    assert not started


def test_a_pipe_in_place_of_an_image_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert limited(open_image, tmp_path / "pipe.png", seconds=20)[0] == "OSError"


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [2**20, 2**20], "counts": [2**40]},
        {"size": [8, 8], "counts": "o" * 1_000_000},
        {"size": [8, 8], "counts": [2**62, -(2**62) + 64]},
        [[0, 0, 80, 80] * 100_000],
    ],
)
def test_a_region_takes_bounded_memory_and_time(segmentation: Any, tmp_path: Path) -> None:
    kind, message = limited(region_mask, segmentation, 8, 8, extra_bytes=2**27, seconds=20)
    assert kind == "ValueError", message


def test_a_size_of_an_image_in_an_annotation_file_is_only_a_claim(tmp_path: Path) -> None:
    write_set(tmp_path, train=40)
    content = json_of(tmp_path / "train")
    content["images"][0] |= {"height": 2**40, "width": 2**40}
    write_annotations(tmp_path / "train", content)
    left_out = LeftOut()
    files, classes = read_coco(tmp_path, left_out)
    readable = read_images(files["train"], range(40), classes, 10, left_out)[2]
    assert readable.tolist() == [False] + [True] * 39


def test_a_study_of_others_downloads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def load(**options: Any) -> None:
        seen.update(options)
        raise FileNotFoundError

    monkeypatch.setattr("common.search.study.worker.load_data", load)
    specification = object.__new__(StudySpecification)
    object.__setattr__(specification, "dataset", {"name": "mnist", "root": str(tmp_path), "download": True})
    with pytest.raises(FileNotFoundError):
        load_data_for(specification, None)
    assert seen["download"] is False
