"""Figures of runs and of single networks, at the width of a paper's column.

Every function returns a `matplotlib.figure.Figure` and shows nothing. A notebook shows the figure that the last line
of a cell returns, and `save_figure` writes it. No function opens a window or changes matplotlib's settings.
"""

from common.reporting.figures.bars import bars
from common.reporting.figures.curves import progress, training_curves
from common.reporting.figures.effect import speedups, stages
from common.reporting.figures.layer_times import layer_times
from common.reporting.figures.layers import policy_heatmap, rank_heatmap, sensitivities
from common.reporting.figures.outlines import sample_masks
from common.reporting.figures.pareto import methods, pareto, pareto_front
from common.reporting.figures.radar import radar
from common.reporting.figures.spectra import spectra
from common.reporting.figures.style import save_figure
from common.reporting.figures.where import where_it_goes

__all__ = [
    "bars",
    "layer_times",
    "methods",
    "pareto",
    "pareto_front",
    "policy_heatmap",
    "progress",
    "radar",
    "rank_heatmap",
    "sample_masks",
    "save_figure",
    "sensitivities",
    "spectra",
    "speedups",
    "stages",
    "training_curves",
    "where_it_goes",
]
