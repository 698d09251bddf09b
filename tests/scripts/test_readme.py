from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from common.compression import load_compressed
from common.planning import RULES, method_names
from tests.networks import same_weights, tiny_cnn

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_example_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    x = torch.randn(64, 3, 12, 12)
    names = {"model": tiny_cnn(width=32), "x": x, "batches": [(x, torch.zeros(64))]}
    monkeypatch.chdir(tmp_path)
    exec(code, names)
    small = names["small"]
    assert isinstance(small, torch.nn.Module)
    assert same_weights(load_compressed("small.safetensors", tiny_cnn(width=32)), small)


def test_every_method_and_rule_is_named() -> None:
    assert all(f"`{name}`" in README for name in (*method_names(), *RULES))


def test_every_link_leads_somewhere() -> None:
    local = [target for target in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in target]
    assert len(local) >= 4
    assert not [target for target in local if not (ROOT / target).exists()]


def test_no_figure_is_still_to_be_filled_in() -> None:
    for page in (ROOT / "README.md", ROOT / "benchmarks" / "README.md"):
        assert not re.findall(r"@[A-Z_]+@", page.read_text())
