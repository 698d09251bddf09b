from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import headline
from common.compression import save_compressed
from common.models import build_model
from common.network import profile
from common.network.shapes import trace_layers
from common.reporting.reference import Reference

X = torch.zeros(1, 3, 8, 8)


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """A file with a Tucker-2 of resnet20 at half of the ranks of two layers, its parameters counted by hand."""
    model = build_model("resnet20", 10)
    dense, shapes = profile(model, X).params, trace_layers(model, X)
    ranks, params = {}, dense
    for name in list(shapes)[1:3]:
        layer = model.get_submodule(name)
        outputs, inputs, *kernel = (int(size) for size in layer.get_parameter("weight").shape)
        half = [inputs // 2, outputs // 2]
        ranks[name] = half
        params -= outputs * inputs * kernel[0] * kernel[1]
        params += inputs * half[0] + half[0] * half[1] * kernel[0] * kernel[1] + half[1] * outputs
    path = tmp_path / "peer.jsonl"
    path.write_text(json.dumps({"model": "resnet20", "params": params, "accuracy": 0.5, "ranks": ranks}) + "\n")
    return path


def run(tmp_path: Path, reference: Path, capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    arguments = ["--weights", str(tmp_path / "seed0.safetensors"), str(tmp_path / "seed1.safetensors")]
    arguments += ["--model", "resnet20", "--dataset", "digits", "--image-size", "8", "--limit", "32", "--rounds", "3"]
    arguments += ["--arms", "its ranks, its way", "tucker2", "htd, searched"]
    arguments += ["--trials", "2", "--epochs", "0.5", "--its-epochs", "0.5"]
    arguments += ["--batch-size", "16", "--timed-size", "8", "--runtimes", "eager", "--reference", str(reference)]
    headline.main([*arguments, "--out", str(tmp_path / "out")])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_two_seeds_are_compared_and_a_second_run_makes_nothing_again(
    tmp_path: Path, reference: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(2):
        torch.manual_seed(seed)
        save_compressed(build_model("resnet20", 10), tmp_path / f"seed{seed}.safetensors")
    rows = run(tmp_path, reference, capsys)
    arms = ["dense", "dense, trained", "its ranks, its way", "tucker2", "htd, searched"]
    assert [row[0] for row in rows if row[0] in arms] == 3 * arms  # scores, differences, times
    scores, differences = ({row[0]: row for row in rows[start:][: len(arms) + 2]} for start in (0, len(arms) + 2))
    exact = Reference.read(reference).of("resnet20", "digits").compressed[0].params
    dense = profile(build_model("resnet20", 10), X).params
    assert scores["its ranks, its way"][1] == f"{100 * (exact / dense - 1):.2f}% ± 0.00"
    assert float(scores["tucker2"][1].split("%")[0]) <= 100 * (exact / dense - 1)
    assert float(scores["htd, searched"][1].split("%")[0]) <= 100 * (exact / dense - 1)
    assert scores["dense"][4] == differences["dense"][1] == ""
    assert differences[""][1:] == [f"points from {arm}" for arm in arms[:3]]
    assert all("±" in cell for cell in differences["tucker2"][1:])
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}
    assert sum(path.parent.name == "out" for path in made) == 20  # a network and its scores: five arms, two seeds
    untimed = 2 * (len(arms) + 2)
    assert run(tmp_path, reference, capsys)[:untimed] == rows[:untimed]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")} == made


def test_a_network_of_another_size_is_refused(
    tmp_path: Path, reference: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = json.loads(reference.read_text())
    reference.write_text(json.dumps(held | {"params": held["params"] + 1}))
    for seed in range(2):
        save_compressed(build_model("resnet20", 10), tmp_path / f"seed{seed}.safetensors")
    with pytest.raises(ValueError, match=r"has [\d,]+ parameters where the reference states"):
        run(tmp_path, reference, capsys)
