from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from common.compression import load_compressed
from common.planning import RULES, method_names
from tests.networks import same_weights, tiny_cnn

ROOT = next(folder for folder in Path(__file__).parents if (folder / "README.md").exists())
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
METHODS = method_names()
RULE_NAMES = [rule.__name__ for rule in RULES.values()]


def test_the_example_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    x = torch.randn(64, 3, 12, 12)
    names = {"model": tiny_cnn(width=32), "x": x, "batches": [(x, torch.zeros(64, dtype=torch.long))]}
    monkeypatch.chdir(tmp_path)
    exec(code, names)
    small = names["small"]
    assert isinstance(small, torch.nn.Module)
    assert same_weights(load_compressed("small.safetensors", tiny_cnn(width=32)), small)


def test_every_method_and_rule_is_named() -> None:
    assert all(f"`{name}`" in README for name in METHODS)
    assert all(f"`{name}(" in README for name in RULE_NAMES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_import_of_a_page_exists(page: Path) -> None:
    for line in re.findall(r"^from common.*$", page.read_text(), re.MULTILINE):
        exec(line, {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", page.read_text()) if "://" not in target]
    for path, _, anchor in (target.partition("#") for target in targets):
        linked = page.parent / path if path else page
        assert linked.exists(), path
        assert not anchor or anchor in anchors(linked.read_text()), f"{path}#{anchor}"


def test_every_picture_is_on_a_page() -> None:
    shown = {Path(target).name for page in PAGES for target in re.findall(r"\]\(([^)]+\.png)\)", page.read_text())}
    assert {path.name for path in (ROOT / "docs" / "images").iterdir()} == shown


def test_the_front_page_is_one_page() -> None:
    assert len(README.splitlines()) <= 120
    assert len((ROOT / "benchmarks" / "README.md").read_text().split()) < 1500


def test_no_figure_is_still_to_be_filled_in() -> None:
    for page in PAGES:
        assert not re.findall(r"@[A-Z_]+@", page.read_text())


def anchors(markdown: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", markdown, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
