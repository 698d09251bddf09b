"""Every reader of files that others may have written, as a function of bytes, with the errors that it documents."""

from __future__ import annotations

import dataclasses
import io
import json
import tempfile
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from common.compression import compress, load_compressed, save_compressed
from common.data.annotations import LeftOut, read_coco
from common.data.coco_images import read_images
from common.data.images import open_image
from common.data.masks import region_mask
from common.latency.cache import current_conditions, read_table
from common.latency.operations import Operation
from common.latency.table import LatencyTable, WholeNetwork
from common.models import build_model
from common.network.state import decoded
from common.notebook.config import ClassifierConfig, SegmentationConfig
from common.planning import Fixed, plan_ranks
from common.reporting.frame import Trials
from common.reporting.html.report import report_page
from common.reporting.runs import Log
from common.reporting.tables import all_tables
from common.reporting.tables.table import csv_text
from common.search.study.attempts import Attempts
from common.search.study.specification import SPECIFICATION, StudySpecification
from common.search.study.storage import open_storage, open_study
from common.trials import TrialWriter, read_log
from tests.coco import annotation, square, write_set
from tests.networks import TinyCNN, tiny_cnn
from tests.records import make_record

CORPUS = Path(__file__).parent / "corpus"
"""What was found once: a folder for each reader."""
BEGUN = Path(__file__).parents[1] / "search" / "begun"
SIZE = 8
"""Side of the images of the COCO set."""


@dataclass(frozen=True)
class Reader:
    """A reader to try.

    Attributes:
        name: of the reader, and of its folder in the corpus.
        read: reads a content; ``folder`` is for files.
        samples: makes valid contents.
        documented: the exceptions that the reader documents.
        share: of a long run's inputs.
    """

    name: str
    read: Callable[[bytes, Path], object]
    samples: Callable[[], list[bytes]]
    documented: tuple[type[Exception], ...]
    share: float


@cache
def log_samples() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        with TrialWriter(folder, "resnet18-cifar10") as writer:
            writer.note("a line for people")
            writer.write(make_record())
            writer.write(make_record(trial=1, status="failed", error="why"))
        return [
            writer.path.read_bytes(),
            (BEGUN / "begun.log").read_bytes(),
            (BEGUN.parents[1] / "trials" / "schema1.jsonl").read_bytes(),
        ]


def read_a_log(content: bytes, folder: Path) -> object:
    path = folder / "r.log"
    path.write_bytes(content)
    records, _ = read_log(path)
    return [record.to_line() for record in records]


def report_a_log(content: bytes, folder: Path) -> object:
    """Make all tables and the page from what was read."""
    path = folder / "r.log"
    path.write_bytes(content)
    log = Log(path)
    trials = Trials.read([log], by_name=False)
    if trials.frame.empty:
        return None
    tables = all_tables(trials, 0.99, folder)
    files = [(table.console(80), table.markdown(), table.latex(), csv_text(table.raw)) for table in tables]
    return files, report_page(trials, 0.99, tables, {}, "lead", "command", log.sentences())


@cache
def config_samples() -> list[bytes]:
    found = []
    for kind in (ClassifierConfig, SegmentationConfig):
        values = {field.name: getattr(kind(), field.name) for field in dataclasses.fields(kind)}
        found.append(json.dumps({"kind": kind.__name__, **values}).encode())
    return found


def read_a_config(content: bytes, folder: Path) -> object:
    """A stranger has no say in where the user's files lie, so folders and storage stay those of the user."""
    values = json.loads(content)
    if not isinstance(values, dict):
        raise ValueError("no parameters")
    kind = SegmentationConfig if values.pop("kind", "") == "SegmentationConfig" else ClassifierConfig
    values |= {"logs": str(folder / "logs"), "storage": None, "data_root": None, "download": False}
    config = kind.from_notebook(values)
    return (
        config.search_settings(),
        config.command("notebook"),
        config.model_arguments("unet" if kind is SegmentationConfig else "resnet18"),
    )


@cache
def dense() -> TinyCNN:
    return tiny_cnn(width=8)


@cache
def networks() -> tuple[nn.Module, ...]:
    """A dense and a compressed network that no builder makes, and one that a builder makes."""
    plan = plan_ranks(dense(), torch.zeros(1, 3, SIZE, SIZE), "htd", Fixed(2))
    return dense(), compress(dense(), plan), build_model("unet", 1, width=2, depth=1)


@cache
def checkpoint_samples() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        return [save_compressed(network, Path(folder) / "w").read_bytes() for network in networks()]


def read_a_checkpoint(content: bytes, folder: Path) -> object:
    path = folder / "w.safetensors"
    path.write_bytes(content)
    return load_compressed(path, None if b"unet" in content[:20_000] else dense())


METADATA = ("builder", "plan", "inputs", "state")


@cache
def saved() -> list[tuple[dict[str, Tensor], bytes]]:
    """The tensors of each checkpoint, and the parts of its metadata, each on a line."""
    found = []
    for content in checkpoint_samples():
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        found.append((safetensors.torch.load(content), "\n".join(header[name] for name in METADATA).encode()))
    return found


def metadata_samples() -> list[bytes]:
    return [metadata for _, metadata in saved()]


def read_metadata(content: bytes, folder: Path) -> object:
    parts = [part.decode(errors="replace") for part in content.split(b"\n")]
    known = "unet" in parts[0]
    tensors = saved()[2 if known else 1 if "htd" in content.decode(errors="replace") else 0][0]
    path = folder / "m.safetensors"
    safetensors.torch.save_file(tensors, path, dict(zip(METADATA, parts, strict=False)) | {"schema": "1"})
    return load_compressed(path, None if known else dense())


def state_samples() -> list[bytes]:
    quantized = {"kind": "quantized", "dtype": "torch.qint8", "value": "a#0", "scale": 0.5, "zero_point": 1}
    channels = {"kind": "quantized", "value": "a#0", "scales": "a#1", "zero_points": "a#2", "axis": 0}
    kinds = [
        {"kind": "bytes", "value": "aGVsbG8="},
        {"kind": "dtype", "value": "torch.float32"},
        {"kind": "tensor", "value": "a#0"},
        quantized,
        channels,
    ]
    return [
        json.dumps({"kind": "dict", "value": [[0, {"kind": "list", "value": [kind, 1.5]}]]}).encode() for kind in kinds
    ]


def read_a_state(content: bytes, folder: Path) -> object:
    tensors = {"a#0": torch.zeros(2, dtype=torch.int8), "a#1": torch.ones(2), "a#2": torch.zeros(2, dtype=torch.long)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of quantized tensors
        return decoded(json.loads(content), tensors)


def journal_samples() -> list[bytes]:
    return [(BEGUN / "begun.journal").read_bytes()]


def read_a_journal(content: bytes, folder: Path) -> object:
    path = folder / "s.journal"
    path.write_bytes(content)
    storage = open_storage(path)
    study = open_study("begun", storage, None)
    specification = StudySpecification.from_json(study.user_attrs.get(SPECIFICATION))
    return specification.rank_plans(), Attempts(study, specification.settings.places).finished


def table_samples() -> list[bytes]:
    operations = [Operation((3, 8), (3, 3), (8, 8), (8, 8)), Operation((8, 4), (1, 1), (16, 1), (16, 1), linear=True)]
    table = LatencyTable(current_conditions("eager", 1), dict.fromkeys(operations, 1e-3), {"a": WholeNetwork(0.1)})
    return [json.dumps(table.to_json()).encode()]


def read_a_table(content: bytes, folder: Path) -> object:
    path = folder / "t.json"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reader warns and measures again
        return read_table(path, current_conditions("eager", 1)).to_json()


def coco_samples() -> list[bytes]:
    images = [{"id": n, "file_name": f"{n}.png", "height": 20, "width": 20} for n in range(4)]
    runs = {"size": [20, 20], "counts": [100, 50, 250]}
    text = {"size": [20, 20], "counts": "T3b1j7"}
    regions = [[square(0, 0, 10)], runs, text, [square(5, 5, 8), square(0, 0, 3)]]
    annotations = [{**annotation(n, n, region), "bbox": [0, 0, 5, 5]} for n, region in enumerate(regions)]
    categories = [{"id": 1, "name": "tumour", "supercategory": "none"}]
    return [json.dumps({"images": images, "annotations": annotations, "categories": categories}).encode()]


@cache
def coco_root() -> Path:
    root = Path(tempfile.mkdtemp(prefix="coco-"))
    write_set(root, train=4)
    return root


def read_annotations(content: bytes, folder: Path) -> object:
    (coco_root() / "train" / "_annotations.coco.json").write_bytes(content)
    left_out = LeftOut()
    with redirect_stderr(io.StringIO()):
        files, classes = read_coco(coco_root(), left_out)
        images, masks, _ = read_images(files["train"], range(len(files["train"].images)), classes, SIZE, left_out)
    return images.sum(), masks.sum(), left_out.lines()


def region_samples() -> list[bytes]:
    return [json.dumps(item["segmentation"]).encode() for item in json.loads(coco_samples()[0])["annotations"]]


def read_a_region(content: bytes, folder: Path) -> object:
    return region_mask(json.loads(content), 20, 20).sum()


@cache
def image_samples() -> list[bytes]:
    found = []
    for kind in ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP"):
        buffer = io.BytesIO()
        Image.linear_gradient("L").resize((9, 7)).convert("RGB").save(buffer, format=kind)
        found.append(buffer.getvalue())
    return found


def read_an_image(content: bytes, folder: Path) -> object:
    path = folder / "image.png"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of damaged metadata
        return open_image(path, upright=True).size


VALUE: tuple[type[Exception], ...] = (ValueError, RecursionError)
READERS: dict[str, Reader] = {
    reader.name: reader
    for reader in (
        Reader("log", read_a_log, log_samples, (), 0.3),
        Reader("report", report_a_log, log_samples, (), 0.0005),
        Reader("config", read_a_config, config_samples, VALUE, 0.0495),
        Reader("checkpoint", read_a_checkpoint, checkpoint_samples, (ValueError,), 0.05),
        Reader("metadata", read_metadata, metadata_samples, (ValueError,), 0.05),
        Reader("state", read_a_state, state_samples, (*VALUE, OverflowError), 0.05),  # load_compressed names them all
        Reader("journal", read_a_journal, journal_samples, (ValueError,), 0.05),
        Reader("table", read_a_table, table_samples, (), 0.15),
        Reader("annotations", read_annotations, coco_samples, (ValueError,), 0.1),
        Reader("region", read_a_region, region_samples, VALUE, 0.15),
        Reader("image", read_an_image, image_samples, (OSError,), 0.05),
    )
}


def undocumented(reader: Reader, content: bytes, folder: Path) -> Exception | None:
    """Read ``content``; return an exception that the reader does not document, if it raises one."""
    try:
        reader.read(content, folder)
    except reader.documented:
        return None
    except Exception as error:
        return error
    return None


def corpus() -> list[tuple[str, Path]]:
    """The reader and the file of everything that was found once."""
    return [(path.parent.name, path) for path in sorted(CORPUS.glob("*/*"))]
