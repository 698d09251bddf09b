from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from common.checkpoints import load_compressed

ROOT = Path(__file__).parents[1]
TINY = ["--model", "resnet18", "--dataset", "digits", "--image-size", "16", "--limit", "64", "--batch-size", "32"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(ROOT / "finetuned" / "finetune.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_weights_and_how_they_were_made(tmp_path: Path) -> None:
    result = run(*TINY, "--epochs", "2", "--out", str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "resnet18-digits-training.pdf",
        "resnet18-digits-training.png",
        "resnet18-digits.json",
        "resnet18-digits.safetensors",
    ]
    made = json.loads((tmp_path / "resnet18-digits.json").read_text())
    assert [entry["epoch"] for entry in made["history"]] == [1, 2]
    assert made["options"]["limit"] == 64
    assert made["params"] == 11_181_642
    assert 0 <= made["test"]["accuracy"] <= 1
    assert f"test accuracy {made['test']['accuracy']:.2%}" in result.stdout
    model = load_compressed(tmp_path / "resnet18-digits.safetensors")
    assert sum(parameter.numel() for parameter in model.parameters()) == made["params"]


def test_a_factorized_network_from_a_dense_one_and_from_scratch(tmp_path: Path) -> None:
    common = (*TINY, "--epochs", "0.5", "--out", str(tmp_path))
    assert run(*common).returncode == 0
    dense = tmp_path / "resnet18-digits.safetensors"
    for start in (["--dense", str(dense)], []):
        result = run(*common, "--method", "svd", "--ranks", "4", *start)
        assert result.returncode == 0, result.stderr
        small = load_compressed(tmp_path / "resnet18-digits-svd-4.safetensors")
        factors = small.get_submodule("layer1.0.conv1")
        assert [tuple(parameter.shape) for parameter in factors.parameters()] == [(4, 64, 3, 3), (64, 4, 1, 1)]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "resnet", "--dataset", "digits"], "model='resnet' is unknown"),
        (
            ["--model", "unet", "--dataset", "digits"],
            "model='unet' cannot learn classification, which dataset='digits'",
        ),
        ([*TINY, "--method", "svd", "--ranks", "9999"], "ranks=9999 for layer 'conv1'"),
        (["--model", "resnet18", "--dataset", "minst"], "dataset='minst' is unknown (did you mean 'mnist'?)"),
        (["--model", "resnet18", "--dataset", "mnist"], "data_root=None: mnist needs the folder"),
        (["--model", "resnet18", "--dataset", "mnist", "--data-root", "/nowhere"], "does not hold MNIST"),
        ([*TINY, "--learning-rate", "-1"], "learning_rate=-1.0: input should be greater than 0"),
        ([*TINY, "--learning-rate", "1e9"], "learning_rate=1000000000.0 is too high"),
    ],
)
def test_bad_options_are_one_sentence(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    result = run(*arguments, "--out", str(tmp_path))
    assert result.returncode == 1
    assert sentence in result.stderr
    assert result.stderr.splitlines()[-1].startswith("finetune.py: ")
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.glob("*.safetensors"))
