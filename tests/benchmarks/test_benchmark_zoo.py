from __future__ import annotations

import json
import linecache
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import zoo, zoo_examination
from benchmarks.zoo_examination import examine, outcome_of, verdict
from benchmarks.zoo_networks import NETWORKS, Network
from common.compression import compress, load_compressed
from common.planning import Fixed, plan_ranks
from tests.networks import TinyCNN, tiny_cnn

TINY = Network(TinyCNN, (2, 3, 16, 16))


def test_a_plain_network_is_right_at_every_step() -> None:
    record = examine(Network(TinyCNN, TINY.shape, export=True))
    steps = ("full rank", "svd", "mixed", "backward", "load", "export", "unchanged")
    assert record["outcome"] == "right"
    assert record["steps"] == dict.fromkeys(steps, "right")
    norms = 2 * 16 + 2 * 32  # all other parameters are those of layers that can be factored
    assert record["share"] == pytest.approx(1 - norms / sum(p.numel() for p in TinyCNN().parameters()))
    assert max(record["kept svd"], record["kept mixed"]) <= 0.5
    assert record["error"] < 1e-5


def test_a_network_that_cannot_be_halved_is_planned_at_the_least_share_named() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 7, groups=64), nn.Conv2d(64, 8, 1))

    record = examine(Network(build, (2, 3, 16, 16)))
    assert record["outcome"] == "right"
    assert 0.5 < record["kept svd"] < 1


def _other_values(small: nn.Module) -> nn.Module:
    with torch.no_grad():
        next(small.parameters())[0].mul_(1.1)
    return small


@pytest.mark.parametrize("step", ["full rank", "load", "unchanged", "svd", "backward"])
def test_each_fault_is_found_at_its_step(step: str, monkeypatch: pytest.MonkeyPatch) -> None:

    def faulty(dense: nn.Module, plan: Any, **shared: Any) -> nn.Module:
        small = compress(dense, plan, **shared)
        full = plan.rule == "fixed"
        if step == "full rank" and full:
            _other_values(small)
        if step == "unchanged":
            dense.get_buffer("norm.num_batches_tracked").add_(1)
        if step == "svd" and plan.method == "svd" and not full:
            return compress(dense, plan_ranks(dense, TINY.example(), "svd", Fixed("full")))
        if step == "backward" and not full:
            small.get_submodule(next(iter(plan.factored))).requires_grad_(False)
        return small

    monkeypatch.setattr(zoo_examination, "compress", faulty)
    if step == "load":
        monkeypatch.setattr(
            zoo_examination, "load_compressed", lambda *a, **k: _other_values(load_compressed(*a, **k))
        )
    record = examine(TINY)
    assert record["outcome"] == "WRONG"
    assert [name for name, text in record["steps"].items() if text.startswith("WRONG")] == [step]


def verdict_of(action: Callable[[], object], of_export: bool = False) -> str:
    try:
        return str(action())
    except Exception as error:
        return verdict(error, of_export)


def test_only_a_sentence_of_the_suite_is_a_refusal() -> None:
    def elsewhere() -> None:
        raise ValueError("not of the suite")

    model = tiny_cnn()
    assert verdict_of(lambda: plan_ranks(model, TINY.example(), "nonsense")).startswith("refused: method='nonsense'")
    assert verdict_of(elsewhere).startswith("WRONG: ValueError: not of the suite (test_benchmark_zoo.py:")
    assert verdict_of(lambda: model(torch.zeros(2, 5, 16, 16))).startswith("WRONG: RuntimeError: ")


@pytest.mark.parametrize(
    ("line", "of_export", "expected"),
    [
        ("raise ValueError('x must be so')", False, "refused: x must be so"),
        ("raise RuntimeError('x must be so')", False, "WRONG: RuntimeError: x must be so (invented.py:1"),
        ("raise RuntimeError('x must be so')", True, "refused: x must be so"),
        (
            "int('x')",
            False,
            "WRONG: ValueError: invalid literal",
        ),  # an error of an operation, raised in a line of the suite
    ],
)
def test_the_sentence_has_to_be_raised_by_a_line_of_the_suite(
    line: str, of_export: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(zoo_examination.COMMON / "invented.py")
    monkeypatch.setitem(linecache.cache, file, (len(line), None, [line], file))
    assert verdict_of(lambda: exec(compile(line, file, "exec")), of_export).startswith(expected)


def test_the_outcome_is_that_of_the_worst_step() -> None:
    served, refused = {"full rank": "right", "svd": "right"}, {"full rank": "refused: so", "svd": "refused: so"}
    assert outcome_of(served, 0.9) == "right"
    assert outcome_of(served, 0.0) == "untouched"
    assert outcome_of(refused, 0.0) == "clearly refused"
    assert outcome_of({**served, "export": "refused: so"}, 0.9) == "right"
    assert outcome_of({**served, "load": "WRONG: so"}, 0.9) == "WRONG"


@pytest.mark.parametrize(
    ("program", "problem"),
    [
        ("import os; os.kill(os.getpid(), 9)", "exit code -9"),
        ("import time; time.sleep(60)", "took more than 1 s"),
        ("print('no record')", "printed no record"),
    ],
)
def test_a_process_that_ends_badly_becomes_a_record(program: str, problem: str) -> None:
    record = zoo.run_isolated([sys.executable, "-c", program], seconds=1)
    assert record["outcome"] == "WRONG"
    assert record["steps"]["process"].startswith(f"WRONG: {problem}")


def test_a_second_run_continues_where_the_first_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def instead(command: list[str], seconds: float) -> dict[str, Any]:
        ran.append(command[command.index("--one") + 1])
        return {"outcome": "right", "seconds": 1.0, "steps": {"full rank": "right"}, "share": 0.75}

    monkeypatch.setattr(zoo, "run_isolated", instead)
    names = [name for name in NETWORKS if name.startswith("monai/UNet ")]
    file = tmp_path / "zoo.jsonl"
    file.write_text(json.dumps({"network": names[0], **instead(["--one", ""], 1)}) + '\n{"network": "mon\n')
    arguments = ["--only", "monai/UNet *", "--file", str(file)]
    assert zoo.main(arguments) == 0
    assert ran[1:] == names[1:]
    assert "2 networks: 2 right" in capsys.readouterr().out
    zoo.main(arguments)
    assert ran[1:] == names[1:]
    zoo.main([*arguments, "--again"])
    assert ran[2:] == names


def test_the_zoo_is_wide() -> None:
    assert len(NETWORKS) >= 60
    assert sum(network.export for network in NETWORKS.values()) >= 20
    assert {name.split("/")[0] for name in NETWORKS} == {
        "torchvision", "timm", "smp", "monai", "diffusers", "transformers",
    }  # fmt: skip
