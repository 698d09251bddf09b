"""Put executed notebooks into `docs/runs/`.

    python docs/publish.py results/resnet18-digits.ipynb

A notebook must hold the code of `notebooks/` and must have run to its end. Its text is taken from there. What tells of
the machine that ran it is left out. A notebook that names a folder of that machine, or its host, is refused. So is one
of 1.5 MB or more.
"""

from __future__ import annotations

import argparse
import re
import socket
from pathlib import Path
from typing import Any

import nbformat
from nbconvert.preprocessors.coalescestreams import CoalesceStreamsPreprocessor

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "docs" / "runs"
MOST_BYTES = 1_500_000
PATH = re.compile(r"(?<![\w.:/<])/(?:[\w.-]+/)+[\w.-]+")
"""An absolute path of two parts or more."""
INJECTED = "injected-parameters"


def source_of(notebook: Any) -> Path:
    """The file in `notebooks/` that has the title's badge.

    Raises:
        ValueError: the notebook names none.
    """
    found = re.search(r"/blob/main/(notebooks/\w+\.ipynb)", notebook.cells[0].source)
    if found is None:
        raise ValueError("its first cell does not link to a notebook of the suite")
    return ROOT / found[1]


def own_cells(notebook: Any) -> list[Any]:
    """The cells without the one that papermill added."""
    return [cell for cell in notebook.cells if INJECTED not in cell.metadata.get("tags", [])]


def difference(notebook: Any, source: Any) -> str:
    """The first cell whose code is not that of the source, or that did not run; empty if there is none."""
    code = [cell for cell in own_cells(notebook) if cell.cell_type == "code"]
    wanted = [cell.source for cell in source.cells if cell.cell_type == "code"]
    if [cell.source for cell in code] != wanted:
        differing = (mine.source for mine, other in zip(code, wanted, strict=False) if mine.source != other)
        return next(differing, f"{len(code)} cells instead of {len(wanted)}")
    failed = (cell for cell in code if not cell.execution_count or any(o.output_type == "error" for o in cell.outputs))
    return next((cell.source for cell in failed), "")


def traces(notebook: Any, host: str) -> list[str]:
    """The absolute paths in the texts of cells and outputs, and the host's name if one holds it."""
    texts = []
    for cell in notebook.cells:
        texts.append(cell.source)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            texts += [output.get("text", ""), *(text for kind, text in data.items() if kind.startswith("text/"))]
    found = [path for text in texts for path in PATH.findall(re.sub(r"https?://[^\s\"')]+", "", text))]
    return found + [host for text in texts if host and re.search(rf"\b{re.escape(host)}\b", text)]


def cleaned(notebook: Any, source: Any) -> Any:
    """The notebook with the text of its source, joined streams, and without metadata of the machine."""
    made, _ = CoalesceStreamsPreprocessor().preprocess(notebook, {})
    texts = iter(source.cells)
    for cell in own_cells(made):
        cell.source = next(texts).source
    for cell in made.cells:
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k == "tags"})
        for output in cell.get("outputs", []):
            output.metadata = nbformat.from_dict({}) if "metadata" in output else output.get("metadata", {})
            if output.output_type not in ("display_data", "execute_result"):
                output.pop("metadata", None)
    made.metadata = nbformat.from_dict({"kernelspec": made.metadata.kernelspec})
    return made


def publish(path: Path) -> Path:
    """Write the notebook into `docs/runs/`.

    Raises:
        ValueError: it cannot be published; the message says why.
    """
    notebook = nbformat.read(path, as_version=4)
    source = nbformat.read(source_of(notebook), as_version=4)
    if len(own_cells(notebook)) != len(source.cells) or (wrong := difference(notebook, source)):
        raise ValueError(f"{path.name} is not {source_of(notebook).name}, run to its end: {wrong[:80]!r}")
    made = cleaned(notebook, source)
    if found := traces(made, socket.gethostname()):
        raise ValueError(f"{path.name} names {found[0]!r} of this machine")
    text = nbformat.writes(made)
    if len(text) >= MOST_BYTES:
        raise ValueError(f"{path.name} has {len(text):,} bytes; at most {MOST_BYTES:,} are published")
    target = RUNS / path.name
    target.write_text(text + "\n")
    return target


def main() -> None:
    """Publish the notebooks that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="+", type=Path)
    for path in parser.parse_args().notebooks:
        print(publish(path))


if __name__ == "__main__":
    main()
