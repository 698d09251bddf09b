from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from common.compression import load_compressed, save_compressed
from common.data.normalization import IMAGENET, remember_normalization
from common.models import build_model
from common.training import train
from finetuned import finetune
from tests.forked import run_forked

TINY = ["--model", "resnet18", "--dataset", "digits", "--image-size", "16", "--limit", "64", "--batch-size", "32"]


SCRIPT = Path(__file__).parents[2] / "finetuned" / "finetune.py"


def test_weights_and_how_they_were_made(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", str(SCRIPT), *TINY, "--epochs", "2", "--out", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
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
    assert run_forked(SCRIPT, *common, folder=tmp_path).returncode == 0
    dense = tmp_path / "resnet18-digits.safetensors"
    for start in (["--dense", str(dense)], []):
        result = run_forked(SCRIPT, *common, "--method", "svd", "--ranks", "4", *start, folder=tmp_path)
        assert result.returncode == 0, result.stderr
        small = load_compressed(tmp_path / "resnet18-digits-svd-4.safetensors")
        factors = small.get_submodule("layer1.0.conv1")
        assert [tuple(parameter.shape) for parameter in factors.parameters()] == [(4, 64, 3, 3), (64, 4, 1, 1)]


def test_the_dense_weights_decide_about_scale_and_resumption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {name: tmp_path / f"{name}.safetensors" for name in ("a", "b", "imagenet")}
    for seed, (name, file) in enumerate(files.items()):
        torch.manual_seed(seed)
        network = build_model("resnet18", 10)
        if name == "imagenet":
            remember_normalization(network, IMAGENET)
        save_compressed(network, file)
    command = [*TINY, "--epochs", "0.5", "--out", str(tmp_path), "--method", "svd", "--ranks", "4", "--dense"]
    with pytest.raises(ValueError, match="the network was trained on pixels normalised by"):
        finetune.main([*command, str(files["imagenet"])])
    checkpoints: list[Path] = []

    def killed(*_: object, checkpoint: Path, **__: object) -> None:
        checkpoints.append(checkpoint)
        raise KeyboardInterrupt

    monkeypatch.setattr(finetune, "train", killed)
    for name in ("a", "a", "b"):
        with pytest.raises(KeyboardInterrupt):
            finetune.main([*command, str(files[name])])
    assert checkpoints[0] == checkpoints[1] != checkpoints[2]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "resnet", "--dataset", "digits"], "model='resnet' is unknown"),
        (
            ["--model", "unet", "--dataset", "digits"],
            "model='unet' cannot learn classification, the task of dataset='digits'",
        ),
        ([*TINY, "--method", "svd", "--ranks", "9999"], "ranks=9999 for layer 'conv1'"),
        (["--model", "resnet18", "--dataset", "minst"], "dataset='minst' is unknown (did you mean 'mnist'?)"),
        (["--model", "resnet18", "--dataset", "mnist"], "data_root=None: mnist needs the folder"),
        (["--model", "resnet18", "--dataset", "mnist", "--data-root", "/nowhere"], "does not hold MNIST"),
        (["--model", "alexnet", "--dataset", "digits"], "image_size=32: alexnet needs at least 63 pixels"),
        ([*TINY, "--learning-rate", "-1"], "learning_rate=-1.0: input should be greater than 0"),
        ([*TINY, "--epochs", "inf"], "epochs=inf: input should be a finite number"),
        ([*TINY, "--seed", str(2**40)], f"seed={2**40}: input should be less than {2**32}"),
        ([*TINY, "--name", "a/b"], "name='a/b' cannot name a file; use up to 200 letters"),
        ([*TINY, "--learning-rate", "1e9"], "learning_rate=1000000000.0 is too high"),
    ],
)
def test_bad_options_are_one_sentence(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    result = run_forked(SCRIPT, *arguments, "--out", str(tmp_path), folder=tmp_path)
    assert result.returncode == 1
    assert sentence in result.stderr
    assert result.stderr.splitlines()[-1].startswith("finetune.py: ")
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--method", "svd", "--ranks", "abc"], "'abc' is neither a whole number nor a fraction such as 0.25"),
        (["--method", "svd"], "--method and --ranks must be given together"),
        (["--dense", "a.safetensors"], "--dense needs --method and --ranks"),
        (["--method", "mixed", "--ranks", "4"], "invalid choice: 'mixed'"),
    ],
)
def test_inconsistent_options_are_refused(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        finetune.parse_arguments([*TINY, *arguments])
    assert sentence in capsys.readouterr().err


def test_an_interrupted_training_of_the_unet_continues_under_its_name(tmp_path: Path) -> None:
    tiny = ["--model", "unet", "--dataset", "phantoms", "--data-root", str(tmp_path / "data"), "--image-size", "16"]
    tiny += ["--limit", "16", "--batch-size", "8", "--width", "2", "--depth", "2", "--epochs", "3"]
    tiny += ["--name", "mine", "--out", str(tmp_path / "out")]

    def stop(*arguments: Any, on_epoch: Any, **keywords: Any) -> Any:
        def once(entry: dict[str, float]) -> None:
            on_epoch(entry)
            raise KeyboardInterrupt

        return train(*arguments, on_epoch=once, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "train", stop)
        with pytest.raises(KeyboardInterrupt):
            finetune.main(tiny)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.checkpoint"]
    assert finetune.main(tiny) == tmp_path / "out" / "mine.safetensors"
    made = json.loads((tmp_path / "out" / "mine.json").read_text())
    assert [entry["epoch"] for entry in made["history"]] == [1, 2, 3]
    assert not (tmp_path / "out" / "mine.checkpoint").exists()


@pytest.mark.parametrize(("out", "said"), [("file", "a file of that name"), ("file/out", "Not a directory")])
def test_a_folder_that_cannot_be_written_is_found_before_any_work(
    out: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(finetune, "load_data", pytest.fail)
    with pytest.raises(ValueError, match=rf"^out='{tmp_path}/{out}'.* {said}$"):
        finetune.main([*TINY, "--out", str(tmp_path / out)])
