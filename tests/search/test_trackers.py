"""The recipes of ``docs/trackers.md``, each with the real package and a store in a folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.search import SearchSettings, search_ranks
from common.training import TrainingSettings
from common.trials import TrialRecord
from tests.networks import tiny_cnn, tiny_digits

PAGE = (Path(__file__).parents[2] / "docs" / "trackers.md").read_text()
SETTINGS = SearchSettings(
    method="svd", trials=2, finetune_top=1, finetune=TrainingSettings(epochs=0.5, learning_rate=0.01, amp="off")
)
Figures = dict[tuple[str, int], float]
BLOCK = 32 * 1024


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed: pip install {package}")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[TrialRecord]:
    """What a search gives to ``on_trial``."""
    seen: list[TrialRecord] = []
    folder = tmp_path_factory.mktemp("logs")
    search_ranks(tiny_cnn(), tiny_digits(), SETTINGS, logs=folder, run="r", on_trial=seen.append)
    return seen


def run_recipe(title: str, records: list[TrialRecord]) -> Figures:
    """Run a recipe on these records; return what it must have stored: (name, trial) -> the last value."""
    shared, *recipes = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    headings = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    names: dict[str, Any] = {"model": None, "data": None, "settings": SETTINGS}
    exec(shared, names)

    def searched(*_: Any, on_trial: Callable[[TrialRecord], None], **__: Any) -> SimpleNamespace:
        for record in records:
            on_trial(record)
        return SimpleNamespace(best={"params": records[0]})

    names["search_ranks"] = searched
    exec(recipes[headings.index(title)], names)
    return {(name, record.trial): value for record in records for name, value in names["figures_of"](record).items()}


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()


@needs("tensorboard")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard(records: list[TrialRecord], capsys: pytest.CaptureFixture[str]) -> None:
    expected = run_recipe("TensorBoard", records)
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
    expected = run_recipe("MLflow", records)
    client = pytest.importorskip("mlflow").MlflowClient("sqlite:///results/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'rank-search'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params == {"method": "svd", "policy": SETTINGS.policy, "seed": "0"}
    found = {
        (name, metric.step): metric.value
        for name in run.data.metrics
        for metric in client.get_metric_history(run.info.run_id, name)
    }
    assert found == pytest.approx(expected)


@needs("wandb")
@pytest.mark.filterwarnings("ignore")
def test_weights_and_biases(records: list[TrialRecord]) -> None:
    expected = run_recipe("Weights & Biases", records)
    messages = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    (file,) = Path("results/wandb").glob("offline-run-*/run-*.wandb")
    found: Figures = {}
    for message in wandb_messages(file.read_bytes()):
        record = messages.Record()
        record.ParseFromString(message)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
            found |= {(name, row["trial"]): row[name] for name in row if not name.startswith(("_", "trial"))}
    assert found == pytest.approx(expected)


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
