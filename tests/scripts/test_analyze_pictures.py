from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.scripts.running import run, write

SETTINGS = {
    "latex, a missing font, how figures are saved": (
        "text.usetex: True\nfont.family: No Such Font\nfont.size: 30\n"
        "savefig.format: svg\nsavefig.bbox: tight\nfigure.dpi: 30\nsavefig.facecolor: black\n"
    ),
    "a backend that is not there": "backend: module://no_such_backend\ninteractive: True\n",
    "typing errors": "lines.linewidth: thick\nno.such.key: 1\nno colon\n",
}


FORMATS = ("--format", "png", "--format", "pdf", "--format", "html")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of one run where nobody has settings for matplotlib."""
    folder = tmp_path_factory.mktemp("plain")
    write(folder / "logs", "run", {}, {})
    assert run(folder, "analyze_results.py", *FORMATS).returncode == 0
    return folder


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_users_matplotlibrc_changes_no_picture(workplace: Path, plain: Path, settings: str) -> None:
    shutil.copytree(plain / "logs", workplace / "logs")
    (workplace / "matplotlibrc").write_text(SETTINGS[settings])
    assert run(workplace, "analyze_results.py", "--out", "changed", *FORMATS).returncode == 0
    plain_files, changed_files = (sorted(folder.iterdir()) for folder in (plain / "results", workplace / "changed"))
    assert [path.name for path in plain_files] == [path.name for path in changed_files]
    assert (workplace / "changed" / "report.html").exists()
    for one, other in zip(plain_files, changed_files, strict=True):
        assert one.suffix == ".html" or one.read_bytes() == other.read_bytes(), one.name


@pytest.mark.parametrize(
    ("settings", "environment", "reason"),
    [
        (b"font.family: caf\xe9\n", {}, "'utf-8' codec can't decode"),
        (b"", {"MPLBACKEND": "nonsense"}, "Key backend: 'nonsense' is not a valid value"),
    ],
)
def test_settings_that_matplotlib_refuses_are_one_sentence(
    workplace: Path, settings: bytes, environment: dict[str, str], reason: str
) -> None:
    write(workplace / "logs", "run", {})
    (workplace / "matplotlibrc").write_bytes(settings)
    result = run(workplace, "analyze_results.py", **environment)
    assert result.returncode == 2
    said = result.stderr.splitlines()[-1]
    assert said.startswith("matplotlib cannot be loaded with its settings from MPLBACKEND or a file matplotlibrc: ")
    assert reason in said
    assert run(workplace, "analyze_results.py", "--format", "md", **environment).returncode == 0, (
        "tables need no figure"
    )


PATCHED = """
import sys
import analyze_results
from common.reporting import figures

def fail(*_):
    raise {error}

figures.{name} = fail
sys.exit(analyze_results.main([]))
"""


@pytest.mark.parametrize("name", ["pareto", "radar"])
def test_a_picture_that_cannot_be_drawn_is_named_and_the_others_are_drawn(workplace: Path, name: str) -> None:
    write(workplace / "logs", "run", {})
    result = run(workplace, "-c", PATCHED.format(name=name, error='RuntimeError("no latex\\nat all")'))
    assert result.returncode == 2
    sentence = f"The picture {name} could not be drawn: RuntimeError: no latex"
    assert result.stderr.splitlines()[-1] == sentence
    written = {path.name for path in (workplace / "results").iterdir()}
    assert f"{name}.png" not in written
    assert {f"{other}.png" for other in ("radar", "pareto", "methods")} - {f"{name}.png"} <= written
    page = (workplace / "results" / "report.html").read_text()
    assert f"<figcaption>{sentence}</figcaption>" in page


def test_ctrl_c_ends_with_a_sentence(workplace: Path) -> None:
    write(workplace / "logs", "run", {})
    stopped = run(workplace, "-c", PATCHED.format(name="radar", error="KeyboardInterrupt"))
    assert (stopped.returncode, stopped.stderr) == (130, "stopped; some files may not have been written\n")
