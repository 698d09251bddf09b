"""Read texts and marks from drawn figures."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text


def texts(figure: Figure) -> str:
    """Return every text in the drawn figure."""
    figure.draw_without_rendering()
    return "\n".join(t.get_text() for t in figure.findobj(Text) if isinstance(t, Text) and t.get_visible())


def assert_inside_the_page(figure: Figure) -> None:
    box = figure.get_tightbbox()  # inches, of what is really drawn
    width, height = figure.get_size_inches()
    assert min(box.x0, box.y0) >= -0.01
    assert box.x1 <= width + 0.01
    assert box.y1 <= height + 0.01


def marks_of(figure: Figure, cut_off: bool = False) -> list[tuple[str, bool]]:
    """Return each mark's marker and whether its centre lies inside the axes; with ``cut_off``, clipped marks too."""
    figure.draw_without_rendering()
    found = []
    for axes in figure.axes:
        box = axes.get_window_extent().padded(0.5)
        for line in axes.get_lines():
            if line.get_marker() not in (None, "None", "", " ") and (cut_off or not line.get_clip_on()):
                places = axes.transData.transform(np.asarray(line.get_xydata()))
                found += [(str(line.get_marker()), box.contains(x, y)) for x, y in places]
    return found
