"""The recipes of ``docs/trackers.md``, each with the real package and a store in a folder."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from common.search import SearchSettings, search_ranks
from common.training import TrainingSettings
from common.trials import TrialRecord
from tests.networks import tiny_cnn, tiny_digits
from tests.search.recipes import PAGE, Figures, figures, run_recipe

ROOT = Path(__file__).parents[2]
SETTINGS = SearchSettings(
    method="svd", trials=2, finetune_top=1, finetune=TrainingSettings(epochs=0.5, learning_rate=0.01, amp="off")
)
BLOCK = 32 * 1024


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed: pip install {package}")


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def records(logs: Path) -> list[TrialRecord]:
    """What a search gives to ``on_trial``."""
    seen: list[TrialRecord] = []
    search_ranks(tiny_cnn(), tiny_digits(), SETTINGS, logs=logs, run="r", on_trial=seen.append)
    return seen


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()


@needs("tensorboard")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard(records: list[TrialRecord], capsys: pytest.CaptureFixture[str]) -> None:
    expected = figures(records)
    run_recipe("TensorBoard", records, SETTINGS)
    assert {"recalibrated/accuracy", "test/accuracy", "parameters"} <= {name for name, _ in expected}
    assert len(capsys.readouterr().out.splitlines()) == len(records)
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator("results/tensorboard/my-run")
    events.Reload()
    found = {(name, event.step): event.value for name in events.Tags()["scalars"] for event in events.Scalars(name)}
    assert found == {key: pytest.approx(value, rel=1e-6) for key, value in expected.items()}


@needs("mlflow")
@pytest.mark.filterwarnings("ignore")
def test_mlflow(records: list[TrialRecord]) -> None:
    run_recipe("MLflow", records, SETTINGS)
    client = pytest.importorskip("mlflow").MlflowClient("sqlite:///results/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'rank-search'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params == {"method": "svd", "policy": SETTINGS.policy, "seed": "0"}
    found = {
        (name, metric.step): metric.value
        for name in run.data.metrics
        for metric in client.get_metric_history(run.info.run_id, name)
    }
    assert found == pytest.approx(figures(records))


@pytest.fixture(scope="module")
def offline(records: list[TrialRecord], logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a process ran the recipe of Weights & Biases in offline mode."""
    folder = tmp_path_factory.mktemp("offline")
    (folder / "results").mkdir()
    run_module(folder, "tests.search.recipes", "Weights & Biases", str(logs / "r.log"))
    return folder


def run_module(folder: Path, *words: str) -> str:
    """Run a module in a folder which is also the home, so that no account is known."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"HOME": str(folder), "WANDB_ERROR_REPORTING": "false"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@needs("wandb")
@pytest.mark.filterwarnings("ignore")
def test_weights_and_biases(records: list[TrialRecord], offline: Path) -> None:
    messages = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    (file,) = offline.glob("results/wandb/offline-run-*/run-*.wandb")
    found: Figures = {}
    for message in wandb_messages(file.read_bytes()):
        record = messages.Record()
        record.ParseFromString(message)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
            found |= {(name, row["trial"]): row[name] for name in row if not name.startswith(("_", "trial"))}
    assert found == pytest.approx(figures(records))


@needs("wandb")
def test_weights_and_biases_finds_the_run_to_upload(offline: Path) -> None:
    """The command of the page, which tells what it would upload: uploading takes an account."""
    (command,) = re.findall(r"`(wandb sync [^`]+)`", PAGE)
    *words, pattern = shlex.split(command)
    (run,) = offline.glob(pattern)
    told = run_module(offline, *words, "--dry-run", str(run.relative_to(offline)))
    assert "Would sync 1 run" in told
    (file,) = run.glob("run-*.wandb")
    assert str(file.relative_to(offline)) in told


def wandb_messages(content: bytes) -> Iterator[bytes]:
    """The messages in W&B's file: LevelDB's log format, behind a header of 7 bytes."""
    position, parts = 7, b""
    while position + 7 <= len(content):
        left = BLOCK - position % BLOCK
        if left < 7:  # the rest of a block that no header fits into
            position += left
            continue
        size, kind = int.from_bytes(content[position + 4 : position + 6], "little"), content[position + 6]
        parts += content[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""
