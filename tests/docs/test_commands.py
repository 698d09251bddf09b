"""Every command in the README, CONTRIBUTING and ``docs/`` is run by a test.

A test that runs a command may use fewer images, other data or another folder. Besides, the options of every Python
command are given to its own parser here, and the parameters of every papermill command to the notebook's config.
"""

from __future__ import annotations

import argparse
import json
import re
import runpy
import shlex
import subprocess
import sys
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
import yaml

from common.notebook.config import ClassifierConfig, CompareConfig, NotebookConfig, SegmentationConfig
from common.notebook.own_config import OwnConfig

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = "make|python|pip|uvx|pytest|papermill|torchrun|srun|git|optuna-dashboard|tensorboard|wandb|jupyter|mkdocs"
COMMAND = re.compile(rf"^(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(?:{PROGRAMS}) |^\. ")
CONFIGS: dict[str, type[NotebookConfig]] = {"unet": SegmentationConfig, "compare": CompareConfig, "own": OwnConfig}
INSTALLED = r"pip install (optuna-dashboard|\"psycopg|tensorboard)"
"""What ``make test`` has installed."""

TESTED = {
    r"make test": "tests/docs/test_commands.py::test_the_targets_of_make_exist",
    r"make check": "tests/docs/test_commands.py::test_make_check_takes_steps_of_make_test",
    r"make demo$": "tests/docs/test_commands.py::test_make_demo_takes_three_tested_steps",
    r"\. \.venv/bin/activate": "tests/docs/test_commands.py::test_the_environment_can_be_activated",
    r"\.venv/bin/pytest": "tests/docs/test_commands.py::",
    r"git worktree add": "tests/docs/test_commands.py::test_older_commits_are_checked_out_beside_a_clone",
    r"pip install \.$": "tests/scripts/test_wheel.py::installed",
    r"make notebooks": "tests/scripts/test_notebooks.py::test_make_runs_the_notebooks_that_the_parameters_fit_and",
    r"make notebooks-sync": "tests/scripts/test_notebooks.py::test_the_notebook_matches_its_source",
    r"make docs": "tests/docs/test_site.py::site",
    r"papermill notebooks/resnet18": "tests/scripts/test_notebooks.py::test_resnet18_from_data_to_tables",
    r"papermill notebooks/(alexnet|vgg16)": "tests/scripts/test_notebooks.py::test_the_other_classifiers",
    r"papermill notebooks/(unet|compare)": "tests/scripts/test_notebooks.py::test_unet_and_the_comparison_of_runs",
    r"python docs/publish.py": "tests/docs/test_published.py::test_a_published_notebook_is_clean",
    r"python jsonify_logs.py": "tests/scripts/test_jsonify.py::test_jsonify_holds_the_latest_version_of_each_trial",
    r"python analyze_results.py": "tests/scripts/test_analyze.py::test_analyze_shows_the_summary_and_writes",
    r"(OMP_NUM_THREADS=1 )?python finetuned/finetune.py": "tests/scripts/test_finetune.py::test_weights_and_how_they",
    r"torchrun": "tests/training/test_distributed.py::test_two_processes_train_as_one",
    r"python -m common.search.study.worker": "tests/search/test_worker.py::test_workers_on_postgresql_that_are_killed",
    r"srun": "tests/search/test_worker.py::test_workers_on_postgresql_that_are_killed",
    r"optuna-dashboard postgresql": "tests/search/test_worker.py::test_the_dashboard_opens_on_a_study",
    r"optuna-dashboard logs": "tests/docs/test_servers.py::test_the_dashboard_lists_the_studies_of_a_journal",
    r"tensorboard": "tests/docs/test_servers.py::test_tensorboard_lists_the_runs",
    r"\.venv/bin/jupyter lab": "tests/docs/test_servers.py::test_jupyter_lab_lists_the_notebooks",
    r"python -m tests.faults.fuzz": "tests/faults/test_bad_input.py::",
    r"(FAULT_KILLS|SEARCH_KILLS)=\d+ pytest": "tests/faults/test_kills.py::",
    r"(OMP_NUM_THREADS=1 )?python -m benchmarks.arsvd": "tests/benchmarks/test_arsvd.py::",
    r"(OMP_NUM_THREADS=1 )?python -m benchmarks.headline": "tests/benchmarks/test_headline.py::",
    r"(OMP_NUM_THREADS=1 )?python -m benchmarks.peers": "tests/benchmarks/test_benchmark_peers.py::",
    r"python -m benchmarks.zoo": "tests/benchmarks/test_benchmark_zoo.py::",
    r"OMP_NUM_THREADS=[12] python benchmarks/latency.py": "tests/benchmarks/test_benchmark_latency.py::",
    r"OMP_NUM_THREADS=1 python benchmarks/exported_accuracy.py": "tests/benchmarks/test_benchmark_exported.py::",
    r"python benchmarks/accuracy_before_finetuning.py": "tests/benchmarks/test_benchmark_accuracy.py::",
    r"(OMP_NUM_THREADS=1 )?python -m common.shrink": "tests/scripts/test_wheel.py::test_a_stranger_gets_small_files",
    r"papermill notebooks/own": "tests/scripts/test_wheel.py::test_a_stranger_gets_them_by_the_notebook",
    r"pytest -m gpu": "tests/test_devices.py::",
    r"make lock": "tests/test_requirements.py::test_the_locks_are_written_for_both_versions_of_python",
    r"make test-newest$": "tests/test_requirements.py::test_the_newest_python_checks_a_clone",
    r"SEARCH_WORKERS=\d+ SEARCH_TRIALS=\d+ pytest": "tests/faults/test_database.py::",
    r"NUMERIC_CASES=\d+ pytest": "tests/decomposition/test_numerics.py::",
    r"python -m tests.faults.long_run": "tests/faults/test_long_runs.py::",
    r"pip install -e \.": "tests/docs/test_commands.py::test_make_has_installed_the_suite_as_editable",
    INSTALLED: "tests/docs/test_commands.py::test_packages_that_the_pages_name_are_those_of_the_tests",
    r"OMP_NUM_THREADS=1 python benchmarks/search.py": "tests/benchmarks/test_benchmark_search.py::",
    r"python benchmarks/denoiser.py": "tests/benchmarks/test_benchmark_images.py::test_the_denoiser",
    r"OMP_NUM_THREADS=1 python benchmarks/precisions.py": "tests/benchmarks/test_benchmark_images.py::test_precisions",
    r"python benchmarks/decomposition_time.py": "tests/benchmarks/test_benchmark_checkouts.py::test_time_and_memory",
    r"python benchmarks/layer_errors.py": "tests/benchmarks/test_benchmark_checkouts.py::test_errors_of_layers",
    r"python -m tests.faults.denormals": "tests/faults/test_denormals.py::",
    r"pip install (openvino|mlflow-skinny|wandb)": "tests/docs/test_packages.py::test_packages_that_fit_the_pinned",
    r"pip install --no-deps": "tests/docs/test_packages.py::test_the_packages_of_the_zoo_can_be_installed",
    r"pip install --require-hashes": "tests/docs/test_packages.py::test_a_lock_is_complete_and_its_hashes",
    r"uvx pip-audit": "tests/docs/test_packages.py::test_the_audit_takes_the_lock",
    r"wandb sync": "tests/search/test_trackers.py::test_weights_and_biases_finds_the_run_to_upload",
}
"""A command's beginning -> the test that runs it; `::` alone stands for all tests of the module."""


def commands() -> list[str]:
    """Every command of the pages: the lines of their shell blocks, and code in lines that begins with a program."""
    found: list[str] = []
    for page in PAGES:
        text = page.read_text()
        fences = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        for language, body in fences:
            if language not in ("", "bash", "sh"):
                continue
            lines = re.sub(r"\\\n\s*", "", body).splitlines()
            found += [line.partition("  #")[0].strip() for line in lines if COMMAND.match(f"{line} ")]
        prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        found += [code for code in re.findall(r"`([^`\n]+)`", prose) if COMMAND.match(code)]
    return list(dict.fromkeys(found))


COMMANDS = commands()


def test_commands_are_found() -> None:
    assert len(COMMANDS) > 30
    for command in ("make demo", "make test", "python analyze_results.py", "git worktree add ../before b742b8a"):
        assert command in COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_a_test_runs_the_command(command: str) -> None:
    known = [place for place in TESTED if re.match(rf"(?:{place})(?![\w-])", command)]
    assert len(known) == 1, known


def test_the_list_names_existing_tests_and_commands() -> None:
    for place in TESTED:
        assert any(re.match(rf"(?:{place})(?![\w-])", command) for command in COMMANDS), place
    for test in TESTED.values():
        file, _, name = test.partition("::")
        assert re.search(rf"^def {name or 'test_'}", (ROOT / file).read_text(), re.MULTILINE), test


def test_the_targets_of_make_exist() -> None:
    """``make test`` is what runs this test."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {command.split()[1] for command in COMMANDS if command.startswith("make ")}
    assert named <= targets


def steps_of(target: str) -> list[str]:
    """What ``make`` would run for a target, besides the installation of packages."""
    command = ["make", "--dry-run", "--no-print-directory", target]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [line for line in shown.splitlines() if not re.search(r"pip install|-m venv|^touch |^python3 -c", line)]


def test_make_check_takes_steps_of_make_test() -> None:
    """The first steps are the same. Its tests are some of those that ``make test`` runs, beside the type checker."""
    (*check, some), (*test, every) = steps_of("check"), steps_of("test")
    test.remove("make --jobs=2 types tests")
    assert check == test
    assert len(check) == 4
    assert some.startswith(f'{every} -m "not slow" ')
    assert all((ROOT / path).exists() for path in some.split('"')[-1].split())


def test_make_demo_takes_three_tested_steps() -> None:
    notebook, *scripts = (step.replace(".venv/bin/", "") for step in steps_of("demo"))
    assert notebook.startswith("papermill notebooks/resnet18.ipynb results/resnet18-digits.ipynb ")
    assert scripts == ["python jsonify_logs.py", "python analyze_results.py"]
    for step in (notebook, *scripts):
        assert any(re.match(place, step) for place in TESTED), step


def test_the_environment_can_be_activated() -> None:
    activate = Path(sys.prefix) / "bin" / "activate"
    if not activate.exists():
        pytest.skip("these tests run outside a virtual environment")
    found = subprocess.run(
        ["sh", "-c", f". {shlex.quote(str(activate))} && command -v papermill"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(found.stdout.strip()).is_file()


def test_older_commits_are_checked_out_beside_a_clone(tmp_path: Path) -> None:
    """A clone without history lacks them."""
    if git("rev-parse", "--is-shallow-repository") != "false":
        pytest.skip("this is no clone with its history")
    clone = tmp_path / "clone"
    git("clone", "--quiet", "--shared", "--no-checkout", str(ROOT), str(clone))
    older = [command for command in COMMANDS if command.startswith("git worktree add ")]
    assert older
    for command in older:
        *_, folder, commit = command.split()
        git(*command.split()[1:], folder=clone)
        assert git("rev-parse", "HEAD", folder=clone / folder).startswith(commit)
        assert (clone / folder / "common" / "compression" / "__init__.py").exists()


def git(*words: str, folder: Path = ROOT) -> str:
    return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False).stdout.strip()


def test_make_has_installed_the_suite_as_editable() -> None:
    """Its first step was ``pip install --editable .``; pip notes that beside the installed package."""
    try:
        noted = metadata.distribution("low-rank-cnn").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        noted = None
    if noted is None:
        pytest.skip("these tests run in an environment that make did not make")
    origin = json.loads(noted)
    assert origin["dir_info"] == {"editable": True}
    assert (Path(origin["url"].removeprefix("file://")) / "common" / "__init__.py").exists()


def test_packages_that_the_pages_name_are_those_of_the_tests() -> None:
    """With no index, pip finds what it is told to install only if it is there, in the version that the page names."""
    named = [shlex.split(command)[2] for command in COMMANDS if re.match(INSTALLED, command)]
    assert len(named) == 3
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-index",
        "--no-deps",
        "--disable-pip-version-check",
        *named,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f"Requirement already satisfied: {name}" in done.stdout for name in named)


class Parsed(Exception):
    """The command's options were accepted."""


PYTHON = [
    command
    for command in COMMANDS
    if re.match(r"(?:[A-Z_]+=\S+ |srun )*(?:python|torchrun) ", command) and not command.endswith("--help")
]


@pytest.mark.filterwarnings("ignore:.* found in sys.modules after import of package")
@pytest.mark.parametrize("command", PYTHON)
def test_the_parser_takes_the_options(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, *arguments: Any) -> NoReturn:
        parse(self, *arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.chdir(ROOT)
    words = [word for word in shlex.split(command) if word != "srun" and not re.match(r"[A-Z_]+=", word)]
    if words[0] == "torchrun":
        words = ["python", *words[words.index("finetuned/finetune.py") :]]
    monkeypatch.setattr(sys, "argv", words[2 if words[1] == "-m" else 1 :])
    run = partial(runpy.run_module, words[2]) if words[1] == "-m" else partial(runpy.run_path, words[1])
    with pytest.raises(Parsed):
        run(run_name="__main__")


PAPERMILL = [command for command in COMMANDS if command.startswith("papermill ")]


@pytest.mark.parametrize("command", PAPERMILL)
def test_the_notebook_takes_the_parameters(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.notebook.config.default_device", lambda: torch.device("cpu"))
    parser = argparse.ArgumentParser()
    for name, number in (("-p", 2), ("-f", 1)):
        parser.add_argument(name, nargs=number, action="append", default=[])
    parser.add_argument("notebooks", nargs=2)
    options = parser.parse_args(shlex.split(command)[1:])
    values: dict[str, Any] = {}
    for (file,) in options.f:
        values |= yaml.safe_load((ROOT / file).read_text())
    values |= {name: yaml.safe_load(text) if text else "" for name, text in options.p}
    for missing in ("data_root", "weights", "models"):  # files that a clone does not hold
        values.pop(missing, None)
    notebook = ROOT / options.notebooks[0]
    assert notebook.exists()
    CONFIGS.get(notebook.stem, ClassifierConfig).from_notebook({**values, "logs": str(tmp_path)})
