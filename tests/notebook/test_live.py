from __future__ import annotations

from pathlib import Path

import nbformat
import papermill
import pytest
from matplotlib.figure import Figure

from common.notebook import live
from tests.records import make_record

ROOT = Path(__file__).resolve().parents[2]
CELL = """
from common.notebook import live
from common.reporting.figures.style import message
from tests.records import make_record

drawn = []

def draw(records):
    drawn.append([record.trial for record in records])
    return message(f"{len(records)} trials")

live.PAUSE_S, live.SHARE = 0.0, 1e9
picture = live.LivePicture(draw)
for trial in (3, 4, 3):
    picture.add(make_record(trial=trial))
live.PAUSE_S = 60.0
picture.add(make_record(trial=5))
picture.add(make_record(trial=6))  # too soon
picture.show([make_record(trial=7)])
assert drawn == [[3], [3, 4], [3, 4], [3, 4, 5], [7]], drawn
"""


def test_outside_a_notebook_nothing_is_drawn() -> None:
    def draw(_: object) -> Figure:
        raise AssertionError

    picture = live.LivePicture(draw)
    picture.add(make_record())
    picture.show([])


def test_a_picture_that_cannot_be_drawn_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "in_kernel", lambda: True)

    def draw(_: object) -> Figure:
        raise RuntimeError("no ink")

    picture = live.LivePicture(draw)
    with pytest.warns(UserWarning, match="no longer drawn: RuntimeError.'no ink'."):
        picture.add(make_record(trial=1))
    picture.add(make_record(trial=2))
    with pytest.raises(RuntimeError, match="no ink"):
        picture.show([])


def test_every_drawing_replaces_the_last_one(tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    notebook.metadata.kernelspec = {"name": "python3", "language": "python", "display_name": "Python 3"}
    nbformat.write(notebook, tmp_path / "in.ipynb")
    papermill.execute_notebook(tmp_path / "in.ipynb", tmp_path / "out.ipynb", cwd=ROOT, progress_bar=False)
    shown = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    (output,) = shown.cells[-1].outputs
    assert "image/png" in output["data"]
