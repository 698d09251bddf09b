"""The executed notebooks in ``docs/runs/``, and what publishes them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import nbformat
import pytest

from docs import publish

ROOT = Path(__file__).parents[2]
RUNS = sorted((ROOT / "docs" / "runs").glob("*.ipynb"))
IDS = [path.stem for path in RUNS]
SEARCH = "steps.search("


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def test_there_are_runs_and_the_readme_leads_to_them() -> None:
    page = (ROOT / "docs" / "runs" / "README.md").read_text()
    assert "(docs/runs/" in (ROOT / "README.md").read_text()
    assert RUNS
    assert all(f"({path.name})" in page for path in RUNS)


@pytest.mark.parametrize("path", RUNS, ids=IDS)
def test_a_run_is_todays_notebook_run_to_its_end(path: Path) -> None:
    run = read(path)
    source = read(publish.source_of(run))
    assert publish.difference(run, source) == ""
    assert [cell.source for cell in publish.own_cells(run)] == [cell.source for cell in source.cells]


@pytest.mark.parametrize("path", RUNS, ids=IDS)
def test_a_run_shows_its_outputs_and_nothing_of_the_machine(path: Path) -> None:
    run = read(path)
    outputs = [output for cell in run.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    assert publish.traces(run, "") == []
    assert path.stat().st_size < publish.MOST_BYTES


@pytest.mark.parametrize("path", RUNS, ids=IDS)
def test_the_search_takes_no_more_than_a_screen(path: Path) -> None:
    for cell in read(path).cells:
        if SEARCH in cell.source:
            shown = [output.get("text") or output["data"]["text/plain"] for output in cell.outputs]
            assert sum(len(text.splitlines()) for text in shown) <= 60
            assert "image/png" in cell.outputs[0]["data"]  # the picture stands above the lines


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Publish into a folder of the test."""
    monkeypatch.setattr(publish, "RUNS", tmp_path)


@pytest.fixture
def executed() -> Any:
    """The compare notebook as if it had run."""
    notebook = read(ROOT / "notebooks" / "compare.ipynb")
    for number, cell in enumerate(cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.execution_count = number + 1
    return notebook


def write(notebook: Any, folder: Path) -> Path:
    nbformat.write(notebook, folder / "compare-test.ipynb")
    return folder / "compare-test.ipynb"


def say(notebook: Any, text: str) -> Any:
    changed = copy.deepcopy(notebook)
    changed.cells[1].outputs = [nbformat.v4.new_output("stream", text=text)]
    return changed


def test_what_cannot_be_published_is_refused(executed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "mybox")
    other, failed, unfinished, foreign = (copy.deepcopy(executed) for _ in range(4))
    other.cells[1].source += "\nprint(1)"
    failed.cells[1].outputs = [nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])]
    unfinished.cells[-1].execution_count = None
    foreign.cells[0].source = "# Mine"
    refused = {
        "run to its end": (other, failed, unfinished),
        "does not link to a notebook": (foreign,),
        "names '/home/me/suite/x.py'": (say(executed, "/home/me/suite/x.py:3: UserWarning"),),
        "names 'mybox'": (say(executed, "on mybox with 2 cores"),),
        "bytes; at most 1,500,000": (say(executed, "x" * publish.MOST_BYTES),),
    }
    for sentence, notebooks in refused.items():
        for notebook in notebooks:
            with pytest.raises(ValueError, match=sentence):
                publish.publish(write(notebook, tmp_path))


def test_a_published_notebook_is_clean(executed: Any, tmp_path: Path) -> None:
    source = read(ROOT / "notebooks" / "compare.ipynb")
    executed.cells[0].source += "an older text"
    executed.cells[1].outputs = [nbformat.v4.new_output("stream", text=f"{line}\n") for line in "ab"]
    executed.cells[1].metadata["execution"] = {"iopub.execute_input": "2026-01-01"}
    executed.metadata["papermill"] = {"output_path": "/home/me/out.ipynb"}
    injected = nbformat.v4.new_code_cell("keep = 0.5", metadata={"tags": ["injected-parameters"]}, execution_count=9)
    executed.cells.insert(4, injected)
    path = write(executed, tmp_path)
    made = read(publish.publish(path))
    assert [cell.source for cell in publish.own_cells(made)] == [cell.source for cell in source.cells]
    assert made.cells[1].outputs[0]["text"] == "a\nb\n"
    assert made.cells[4].source == "keep = 0.5"
    assert set(made.metadata) == {"kernelspec"}
    assert {key for cell in made.cells for key in cell.metadata} == {"tags"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see /home/me/x.py", ["/home/me/x.py"]),
        ("<td>a</td> 3/4/5 and/or a/b/c.log ./logs/x", []),
        ("https://github.com/low-rank-cnn/x/y.py", []),
        ("PosixPath('/data/set/here')", ["/data/set/here"]),
    ],
)
def test_paths_are_told_from_other_slashes(text: str, found: list[str]) -> None:
    cell = nbformat.v4.new_code_cell("x", outputs=[nbformat.v4.new_output("stream", text=text)])
    assert publish.traces(nbformat.v4.new_notebook(cells=[cell]), "") == found
