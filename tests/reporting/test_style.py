from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import same_color

from common.reporting import figures
from common.reporting.figures.style import method_looks, palette
from tests.records import make_record
from tests.reporting.drawn import texts


def test_save_figure_writes_both_files_and_the_same_bytes_for_the_same_records(tmp_path: Path) -> None:
    paths = figures.save_figure(figures.radar([make_record()]), tmp_path / "new" / "v1.2")
    assert [path.name for path in paths] == ["v1.2.png", "v1.2.pdf"]
    before = [path.read_bytes() for path in paths]
    assert before[0].startswith(b"\x89PNG")
    assert before[1].startswith(b"%PDF")
    figures.save_figure(figures.radar([make_record()]), tmp_path / "new" / "v1.2")
    assert [path.read_bytes() for path in paths] == before


def test_a_notebook_gets_a_png() -> None:
    figure = figures.pareto([make_record()])
    assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]


def test_matplotlibs_settings_stay_as_they_were(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    figures.save_figure(figures.radar([make_record()]), tmp_path / "radar")
    figures.training_curves([{"loss": 1.0}])
    assert dict(matplotlib.rcParams) == before


HOSTILE: dict[Any, Any] = {
    "text.usetex": True,
    # fonts
    "font.family": "No Such Font",
    "font.size": 30,
    "mathtext.fontset": "cm",
    "axes.unicode_minus": False,
    # sizes
    "figure.dpi": 20,
    "savefig.dpi": 20,
    "figure.figsize": (1, 1),
    "lines.linewidth": 9,
    "xtick.labelsize": 20,
    # files
    "savefig.format": "svg",
    "savefig.bbox": "tight",
    "savefig.transparent": True,
    "pdf.fonttype": 3,
    # colours
    "figure.facecolor": "black",
    "savefig.facecolor": "black",
    "text.color": "red",
    "image.cmap": "jet",
    # axes
    "axes.grid": False,
    "axes.spines.top": True,
    "axes.formatter.limits": (0, 0),
    "xtick.minor.visible": True,
    # layout
    "figure.autolayout": True,
    "figure.constrained_layout.use": False,
    "axes.xmargin": 0.4,
    # style of lines
    "path.sketch": (1, 100, 2),
    "path.effects": [],
    "axes.prop_cycle": "cycler('color', ['r'])",
}


def saved_in_every_way(folder: Path) -> list[bytes]:
    """Return figures of every kind (text only, many marks, a colour bar), saved and shown in every way."""
    folder.mkdir()
    made = [
        figures.pareto([]),
        figures.radar([make_record()]),
        figures.pareto([make_record(), make_record(trial=1, model="b")]),
        figures.spectra({"a": [1.0, 0.5, 0.01], "b": [1.0]}, {"a": 2}),
        figures.rank_heatmap([make_record()]),
        figures.policy_heatmap({"a": [0.5, 0.5]}, ["1", "2"]),
        figures.training_curves([{"loss": 1.0, "accuracy": 0.5}, {"loss": 0.5, "accuracy": 0.7}]),
    ]
    contents = []
    for place, figure in enumerate(made):
        contents += [path.read_bytes() for path in figures.save_figure(figure, folder / str(place))]
        contents.append(figure._repr_png_())  # type: ignore[attr-defined]
        figure.savefig(folder / "own.png")
        contents.append((folder / "own.png").read_bytes())
        figure.canvas.print_figure(
            folder / "canvas.png", dpi=100, facecolor="w", bbox_inches="tight"
        )  # as Jupyter does
        contents.append((folder / "canvas.png").read_bytes())
    return contents


def test_the_users_own_settings_change_no_picture(tmp_path: Path) -> None:
    undisturbed = saved_in_every_way(tmp_path / "plain")
    with matplotlib.rc_context(HOSTILE):
        before = dict(matplotlib.rcParams)
        assert saved_in_every_way(tmp_path / "hostile") == undisturbed
        assert dict(matplotlib.rcParams) == before


def test_names_in_any_script_are_drawn(tmp_path: Path) -> None:
    odd = "網絡_ü $x^2$ \\frac"
    shown = texts(figures.pareto([make_record(model="a"), make_record(model="a$b$")]))
    assert "a$b$ (cifar10)" in shown
    for name, figure in {
        "radar": figures.radar([make_record(model=odd)]),
        "pareto": figures.pareto([make_record(model=odd), make_record(model="b")]),
        "spectra": figures.spectra({odd: [2.0, 1.0]}),
    }.items():
        assert len(figures.save_figure(figure, tmp_path / name)) == 2


def test_methods_look_the_same_in_every_figure() -> None:
    alone, among = method_looks(["htd"]), method_looks(["htd", "svd", "my own"])
    assert list(among) == ["svd", "htd", "my own"]
    assert alone["htd"] == among["htd"]
    assert len({marker for _, marker in among.values()}) == 3


def test_the_first_four_colours_are_told_apart_by_the_colour_blind() -> None:
    """Protanopia and deuteranopia by Machado, Oliveira & Fernandes (2009). Seaborn's own order reaches 13, not 40."""
    seen = (
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    )
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    four = np.array([*palette(4), (1, 1, 1)])
    linear = np.where(four <= 0.04045, four / 12.92, ((four + 0.055) / 1.055) ** 2.4)
    for blindness in (np.eye(3), *seen):
        light = np.clip(linear @ np.transpose(blindness), 0, 1) @ xyz.T / [0.9505, 1, 1.089]
        root = np.where(light > 0.008856, np.cbrt(light), 7.787 * light + 16 / 116)
        lab = np.stack([116 * root[:, 1] - 16, *(np.diff(root.T, axis=0) * [[-500], [-200]])], axis=1)
        apart = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
        assert apart[~np.eye(5, dtype=bool)].min() > 40
    looks = method_looks(["svd", "arsvd", "tucker2", "htd"])
    assert all(same_color(color, first) for (color, _), first in zip(looks.values(), palette(4), strict=True))
