# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Runs and networks, compared
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/low-rank-cnn/low-rank-cnn/blob/main/notebooks/compare.ipynb)
#
# This notebook reads the logs of all runs: what did each method reach at which size, and in which network? With
# `models` set, it also compares saved networks, dense or compressed, on one data set: quality on test, size, and time.

# %%
# Set-up: on Colab, fetch the suite and install what is missing; elsewhere, only change to its folder.
import os
import sys
from importlib.util import find_spec
from pathlib import Path

if "google.colab" in sys.modules and not (Path("common").is_dir() or Path("low-rank-cnn").is_dir()):
    os.system("git clone -q --depth=1 ${SUITE_SOURCE:-https://github.com/low-rank-cnn/low-rank-cnn} low-rank-cnn")
sys.path[:0] = [str(p) for p in Path("low-rank-cnn/-").absolute().parents if (p / "common/notebook").is_dir()][:1]
assert find_spec("common"), f"{Path.cwd()} is not inside the suite; start there, or give papermill --cwd FOLDER"

from common.notebook import colab

colab.enter_suite()

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
logs = "logs"  # folder of the logs
keep = 0.99  # a trial is accepted when it keeps this share of the dense metric
models = ""  # saved networks, "a.safetensors,b.safetensors"; the others are compared with the first
dataset = "digits"  # that they are compared on: digits, mnist, cifar10, imagefolder, coco or phantoms
data_root = None  # folder that holds the data set; digits and phantoms need none
image_size = 64  # pixels, height and width
batch_size = 64
limit = None  # use at most this many images
pretrained = False  # whether they started from torchvision's weights, which decides the scale of their inputs
unannotated = "keep"  # coco: keep images without annotation, or drop them

# %%
from common.notebook import evidence, lessons, steps
from common.notebook.config import CompareConfig
from common.reporting import figures, tables
from common.reporting.frame import Trials
from common.reporting.runs import Log, find_logs

(config := CompareConfig.from_notebook(globals()))

# %% [markdown]
# ## The runs

# %%
paths = sorted(Path(config.logs).glob("*.log")) if config.files else find_logs([config.logs])
trials = Trials.read([Log(path) for path in paths])
tables.format_summary(tables.summary_table(trials, config.keep))

# %% [markdown]
# The smallest, the least costly and the fastest network of each model that kept its metric. Where one trial stands in
# two rows, one network won both.

# %%
tables.methods_table(trials, config.keep)

# %%
figures.pareto(trials)

# %% [markdown]
# *What to see:* all trials of all runs, a colour for each network, metric against the share of parameters and MACs
# kept. The staircases are the best that each network can do at a size; hollow marks were not fine-tuned.

# %%
figures.methods(trials)

# %% [markdown]
# *What to see:* a row for each network, a colour for each method. Compare the lines at one place on the horizontal
# axis: that is the comparison at equal size. A method whose line ends early has no smaller network.

# %%
figures.radar(trials, config.keep)

# %% [markdown]
# *What to see:* the smallest accepted network of each model on five axes. Further out is better; a dent shows what the
# network pays for its size.

# %% [markdown]
# ## Saved networks

# %%
found = evidence.compare_networks(config.files, steps.load_data_of(config)) if config.files else None
"models names no network" if found is None else lessons.readable(found, "Saved networks")
