from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import arsvd
from benchmarks.arsvd_arms import Dense
from common.compression import compress, save_compressed
from common.data import load_data, phantoms
from common.models import build_model
from common.network import profile
from common.network.shapes import trace_layers
from common.planning import Budget, Entropy, plan_of
from common.planning.costs import dense_unless_smaller
from tests.networks import lived_in

KEPT = 0.6
SIZED = ["arsvd of weights, exponent 2", "arsvd of outputs, exponent 2", "svd", "tucker2", "htd", "shrink by mixed"]
ARMS = {
    "as published": ["svd, rank 2", "svd, rank 150", "arsvd, exponent 2, tau 0.9"],
    "on outputs": ["arsvd, exponent 2, tau 0.9"],
    "params 0.6": SIZED,
    "macs 0.6": SIZED,
}


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phantoms, "COUNTS", {"train": 40, "valid": 8, "test": 8})
    monkeypatch.setattr("common.training.comparison.RESAMPLES", 20)


@pytest.fixture
def weights(tmp_path: Path) -> list[Path]:
    paths = []
    for seed in range(2):
        torch.manual_seed(seed)
        paths.append(
            save_compressed(lived_in(build_model("unet", 1, width=8, depth=1)), tmp_path / f"s{seed}.safetensors")
        )
    return paths


@pytest.fixture
def dense(weights: list[Path], tmp_path: Path) -> Dense:
    data = load_data("phantoms", tmp_path / "data", 16, batch_size=8, limit=16)
    return Dense(weights[0], list(data.calibration))


def run(weights: list[Path], tmp_path: Path, *more: str) -> None:
    arguments = ["--weights", *map(str, weights), "--dataset", "phantoms", "--data-root", str(tmp_path / "data")]
    arguments += ["--image-size", "16", "--limit", "8", "--batch-size", "8", "--finetune-epochs", "1"]
    arguments += ["--ranks", "2", "150", "--taus", "0.9", "--exponents", "2", "--kept", str(KEPT)]
    arsvd.main([*arguments, "--out", str(tmp_path / "out"), *more])


def tables(text: str) -> list[list[list[str]]]:
    """The cells of each table's rows, without its heads."""
    found: list[list[list[str]]] = []
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        if lines:
            found.append([[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]])
    return found


def held(tmp_path: Path, seed: int) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(gzip.decompress((tmp_path / "out" / f"s{seed}.json.gz").read_bytes()))["arms"]
    return content


def check_sizes(arms: dict[str, Any]) -> None:
    """No budget is exceeded, and no rank exceeds what the layer can have."""
    shapes = trace_layers(build_model("unet", 1, width=8, depth=1), torch.zeros(1, 3, 16, 16))
    for criterion in ("params", "macs"):
        for name in SIZED:
            assert 0 < arms[f"{criterion} 0.6: {name}"][criterion] <= KEPT * arms["dense"][criterion]
    for name, arm in arms.items():
        for layer, planned in arm["layers"].items():
            if planned.get("method") == "svd":
                inputs, outputs = shapes[layer].channels
                assert planned["ranks"][0] <= min(outputs, inputs * 9), (name, layer)
            if name.startswith(("as published", "on outputs")) and layer.startswith("up."):
                assert "dense" in planned
    ranks = {
        planned["ranks"][0] for planned in arms["as published: svd, rank 2"]["layers"].values() if "ranks" in planned
    }
    assert ranks == {2}
    assert arms["as published: svd, rank 150"]["params"] == arms["dense"]["params"]


def test_arms_are_compared_and_a_second_run_makes_nothing_again(
    tmp_path: Path, weights: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run(weights[:1], tmp_path)
    shown = capsys.readouterr().out
    assert (tmp_path / "out" / "tables.md").read_text() == shown
    found = tables(shown)
    for names, sizes, differences in zip(ARMS.values(), found[::2], found[1::2], strict=True):
        assert [row[0] for row in sizes] == [row[0] for row in differences] == ["dense", *names]
    arms = held(tmp_path, 0)
    assert set(arms) == {"dense", *(f"{key}: {name}" for key, names in ARMS.items() for name in names)}
    check_sizes(arms)
    for name, arm in arms.items():
        stages = ["recalibrated", "trained"] if name.endswith("mixed") else ["raw", "recalibrated", "trained"]
        assert list(arm["observed"]) == stages
        assert all(torch.tensor(rows).shape == (8, 1, 4) for rows in arm["observed"].values())
    in_params = {row[0]: row for row in found[5]}
    assert in_params["svd"][5:] == in_params["dense"][5:] == ["", ""]
    assert all(in_params["htd"][index].endswith(("better", "worse", "no difference")) for index in (5, 6))
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir() if path.suffix != ".md"}
    assert len(made) == 1 + len(arms)  # results, and a network for each arm
    run(weights[:1], tmp_path)
    assert capsys.readouterr().out == shown
    run(weights, tmp_path, "--arms", "params 0.6: svd", "params 0.6: htd")
    sizes, differences = tables(capsys.readouterr().out)
    assert [row[0] for row in sizes] == ["dense", "svd", "htd"]
    assert "±" in sizes[2][2]
    assert "±" in differences[2][5]
    assert differences[2][5].endswith(("in 1 of 2", "in 2 of 2", "no difference"))
    assert list(held(tmp_path, 1)) == ["dense", "params 0.6: svd", "params 0.6: htd"]
    assert {path: path.stat().st_mtime_ns for path in made} == made
    with pytest.raises(SystemExit, match="results of other weights, data or training"):
        run(weights, tmp_path, "--learning-rate", "0.01")
    run(weights[:1], tmp_path, "--finetune-epochs", "0", "--out", str(tmp_path / "raw"), "--arms", "params 0.6: htd")
    assert "trained" not in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--arms 'svd': no arm begins so"):
        run(weights, tmp_path, "--arms", "svd")


def test_tables_are_made_from_files_alone_against_any_arm(
    tmp_path: Path, weights: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run(weights, tmp_path, "--arms", "params 0.6: svd", "params 0.6: htd", "--finetune-epochs", "0")
    sizes, differences = tables(capsys.readouterr().out)
    files = [str(tmp_path / "out" / f"s{seed}.json.gz") for seed in range(2)]
    for path in weights:
        path.unlink()
    arsvd.main(["--results", *files, "--kept", "0.6"])
    whole = tables(capsys.readouterr().out)
    assert [row[0] for row in whole[2]] == ["dense"]  # of another budget, which the files do not hold
    assert any(table == sizes for table in whole)
    assert any(table == differences for table in whole)
    arsvd.main(["--results", *files, "--kept", "0.6", "--arms", "params 0.6", "--reference", "htd"])
    _, against = tables(capsys.readouterr().out)
    assert against[2][3] == ""
    assert float(against[1][3].split()[0]) == -float(differences[2][3].split()[0])


def same_outputs(network: nn.Module, dense: Dense) -> bool:
    with torch.no_grad():
        wanted = dense.model(dense.batches[0][0])
        return torch.allclose(network(dense.batches[0][0]), wanted, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("exponent", [1, 2])
@pytest.mark.parametrize("of", ["weights", "outputs"])
def test_all_of_the_entropy_is_the_dense_network(dense: Dense, of: str, exponent: int) -> None:
    """At tau 1 every rank is full: with factors, which are not smaller, and without."""
    chosen = dense.spectra(of)
    plan = dense.planned("arsvd", Entropy(1.0, exponent, only_if_smaller=False), chosen)
    assert len(plan.factored) == 8
    assert same_outputs(compress(dense.model, plan, decompositions=chosen), dense)
    whole = dense.arsvd_at(1.0, exponent, of)
    assert profile(whole, dense.x).params == dense.cost.params
    assert same_outputs(whole, dense)
    assert not same_outputs(dense.arsvd_at(0.5, exponent, of), dense)


@pytest.mark.parametrize("of", ["weights", "outputs"])
@pytest.mark.parametrize("budget", [Budget(params=0.5), Budget(macs=0.4)])
def test_arsvd_has_the_greatest_tau_within_a_budget(dense: Dense, of: str, budget: Budget) -> None:
    network = dense.arsvd_within(budget, 2, of)
    plan = plan_of(network)
    assert plan is not None
    shapes = trace_layers(dense.model, dense.x)
    index, share = (0, budget.params) if budget.params else (1, budget.macs)
    assert share is not None
    layers_cost = sum(shape.dense_cost[index] for shape in shapes.values())
    whole = (dense.cost.params, dense.cost.macs)[index]

    def cost(tau: float) -> int:
        rule = Entropy(tau, 2, only_if_smaller=False)
        plan = dense.planned("arsvd", rule, dense.spectra(of))
        layers = {name: replace(layer, shift=name in dense.on_data.moments) for name, layer in plan.layers.items()}
        kept = (shape.cost(dense_unless_smaller(shape, layers[name]))[index] for name, shape in shapes.items())
        return whole - layers_cost + sum(kept)

    found = profile(network, dense.x)
    tau, size = plan.settings["tau"], (found.params, found.macs)[index]
    assert cost(tau) == size <= share * whole
    greater = [cost(tau + (1 - tau) * step / 50) for step in range(1, 51)]
    assert all(each == size or each > share * whole for each in greater)
    assert greater[-1] > share * whole


def test_a_budget_below_rank_1_is_refused(dense: Dense) -> None:
    with pytest.raises(ValueError, match="cannot be met by ARSVD on the spectra of weights, whatever tau"):
        dense.arsvd_within(Budget(params=0.01), 1, "weights")
