from __future__ import annotations

import errno
import os
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._inductor.exc import InvalidCxxCompiler

from common.notebook.config import ClassifierConfig, CompareConfig, SegmentationConfig


def notebook(**parameters: Any) -> dict[str, Any]:
    """Return the names in a fresh kernel with these parameters."""
    return {"In": ["", "x"], "Out": {}, "_": "", "__name__": "__main__", "Path": Path, "exit": 0, **parameters}


def test_defaults_and_changes() -> None:
    assert ClassifierConfig.from_notebook(notebook()) == ClassifierConfig()
    assert ClassifierConfig.from_notebook(notebook(trials=3, dense_epochs=2)).dense_epochs == 2.0


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"trails": 5}, r"^trails=5 is no parameter of this notebook; did you mean 'trials'\?; allowed: dataset, "),
        ({"trials": "5"}, "^trials='5': input should be a valid integer$"),
        ({"trials": 0}, "^trials=0: input should be greater than or equal to 1$"),
        ({"keep": 1.5}, "^keep=1.5: input should be less than or equal to 1$"),
        (
            {"method": "hdt"},
            r"^method='hdt' is unknown \(did you mean 'htd'\?\); allowed: svd, spatial_svd, tucker2, htd, cp, mixed$",
        ),
        ({"policy": "adaptiv"}, r"^policy='adaptiv' is unknown \(did you mean 'adaptive'\?\); allowed: adaptive, "),
        ({"optimizer": "adam"}, "^optimizer='adam': input should be 'sgd' or 'adamw'$"),
        ({"stem": "big"}, "^stem='big' is unknown; allowed: imagenet, cifar$"),
        (
            {"dataset": "minst"},
            r"^dataset='minst' is unknown \(did you mean 'mnist'\?\); allowed: digits, mnist, cifar10, imagefolder$",
        ),
        ({"dataset": "coco"}, "^dataset='coco' is unknown; allowed: digits, mnist, cifar10, imagefolder$"),
        ({"finetune_epochs": 4.0}, "^finetune_epochs=4.0: input should be less than or equal to 3$"),
        ({"limit": 1.5}, "^limit=1.5: input should be a valid integer"),
        ({"data_root": "/no/such/folder"}, "^data_root='/no/such/folder': there is no such folder$"),
        ({"weights": "none.safetensors"}, "^weights='none.safetensors': there is no such file$"),
        ({"weights": Path("w.safetensors")}, "^weights=.*: input should be a valid string$"),
        ({"run": "a/b"}, "^run='a/b' cannot name a file"),
        ({"svd_ranks": "16,x"}, "^svd_ranks='16,x': it must be whole numbers >= 1, with commas between$"),
        ({"svd_ranks": "0"}, "^svd_ranks='0': it must be whole numbers"),
        (
            {"runtimes": "eager,tensorrt"},
            r"^runtimes='eager,tensorrt': it must be one or more of eager, channels_last,",
        ),
        ({"policy": "vbmf"}, r"^policy='vbmf' plans for a budget; give budget_params or budget_macs, e.g. 0.3$"),
        ({"seed": -1}, "^seed=-1: input should be greater than or equal to 0$"),
        ({"dense_epochs": float("inf")}, "^dense_epochs=inf: input should be a finite number$"),
        ({"runtimes": ","}, "^runtimes=',': it must be one or more of eager,"),
        ({"storage": "nonsense://me:secret@host"}, r"^storage=nonsense://me:\*\*\*@host cannot be opened: "),
        ({"run": "/tmp/x"}, "^run='/tmp/x' cannot name a file"),
        ({"arsvd_taus": "0.5,1.5"}, r"^arsvd_taus='0.5,1.5': it must be numbers in \[0, 1\]"),
    ],
)
def test_bad_parameters_are_one_sentence(parameters: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ClassifierConfig.from_notebook(notebook(**parameters))


def test_running_the_cell_again_ignores_the_notebooks_own_variables() -> None:
    namespace = notebook(trials=3)
    ClassifierConfig.from_notebook(namespace)
    namespace |= {"accuracy": 0.9, "trials": 4}
    assert ClassifierConfig.from_notebook(namespace).trials == 4


def test_lists_are_written_with_commas() -> None:
    config = ClassifierConfig(svd_ranks="16, 32", arsvd_taus="")
    assert (config.rank_list, config.tau_list) == ([16, 32], [])
    assert ClassifierConfig(svd_ranks=8, arsvd_taus=0.5).rank_list == [8]


def test_a_run_that_has_a_log_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "done.log").touch()
    with pytest.raises(ValueError, match=r"^run='done' has a log in .* already; give the run another name$"):
        ClassifierConfig.from_notebook(notebook(run="done", logs=str(tmp_path)))


def test_the_command_gives_the_same_parameters(tmp_path: Path) -> None:
    config = ClassifierConfig(dataset="digits", svd_ranks="8,16", budget_params=0.2, logs=str(tmp_path), run="a run")
    words = shlex.split(config.command("resnet18"))
    assert words[:3] == ["papermill", "notebooks/resnet18.ipynb", "results/a run.ipynb"]
    assert set(words[3::3]) == {"-p"}
    values = dict(zip(words[4::3], words[5::3], strict=True))
    given = {name: value for name, value in vars(config).items() if value is not None or name == "compare_at"}
    assert values == {name: str(value) for name, value in given.items()}


def test_the_command_states_that_the_unet_is_not_compared() -> None:
    words = shlex.split(SegmentationConfig.from_notebook(notebook(compare_at=None)).command("unet"))
    assert (
        words[words.index("compare_at") + 1] == "None"
    )  # papermill reads this as None; the notebook's default is 0.5


def test_a_folder_to_download_into_need_not_be_there(tmp_path: Path) -> None:
    new = str(tmp_path / "new")
    assert ClassifierConfig.from_notebook(notebook(dataset="mnist", data_root=new, download=True)).data_root == new


def test_an_unavailable_runtime_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise InvalidCxxCompiler

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", none)
    with pytest.raises(RuntimeError, match=r"^runtime='compile': torch\.compile needs a C\+\+ compiler"):
        ClassifierConfig.from_notebook(notebook(runtimes="eager,compile"))


def test_what_is_printed_shows_no_storage(tmp_path: Path) -> None:
    config = ClassifierConfig(storage=str(tmp_path / "secret.journal"))
    assert "secret" not in str(config)


def test_onnx_runtime_without_a_gpu_of_its_own_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.notebook.config.default_device", lambda: torch.device("cuda"))
    monkeypatch.setattr("common.deploy.sessions._has_cuda", lambda: False)
    with pytest.raises(ValueError, match=r"^runtimes='eager,onnxruntime': device='cuda': ONNX Runtime needs a GPU"):
        ClassifierConfig.from_notebook(notebook(runtimes="eager,onnxruntime"))


@pytest.mark.parametrize("config", [ClassifierConfig, SegmentationConfig])
@pytest.mark.parametrize(
    ("logs", "said"),
    [
        ("file", "must be a folder, but there is a file of that name$"),
        ("file/logs", "nothing can be written in this folder: Not a directory$"),
        ("file/far/below", "nothing can be written in this folder: Not a directory$"),
        ("/proc/logs", "nothing can be written in this folder: "),
        ("/proc/self/logs", "nothing can be written in this folder: "),
        ("loop/logs", "nothing can be written in this folder: Too many levels of symbolic links$"),
    ],
)
@pytest.mark.parametrize("run", [None, "mine"])
def test_a_folder_for_logs_that_cannot_be_written_is_refused_before_any_work(
    config: type[ClassifierConfig], logs: str, said: str, run: str | None, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "loop").symlink_to("loop")
    folder = str(tmp_path / logs)
    with pytest.raises(ValueError, match=f"^logs={folder!r}:? {said}"):
        config.from_notebook(notebook(logs=folder, run=run))
    assert (tmp_path / "file").read_text() == "precious"


def test_a_folder_without_permission_or_on_a_read_only_disk_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda path, mode: False)
        with pytest.raises(ValueError, match=r"^logs=.*: nothing can be written in this folder: Permission denied$"):
            ClassifierConfig.from_notebook(notebook(logs=str(tmp_path)))

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr("tempfile.TemporaryFile", refuse)
        with pytest.raises(
            ValueError, match=r"^logs=.*: nothing can be written in this folder: Read-only file system$"
        ):
            ClassifierConfig.from_notebook(notebook(logs=str(tmp_path)))
    assert ClassifierConfig.from_notebook(notebook(logs=str(tmp_path))).logs == str(tmp_path)
    assert not list(tmp_path.iterdir())


def test_logs_that_are_only_read_may_lie_on_a_read_only_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert CompareConfig.from_notebook(notebook(logs=str(tmp_path))).logs == str(tmp_path)
