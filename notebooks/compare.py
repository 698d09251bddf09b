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
# This notebook reads the logs of all runs. It shows the best trials of each model, and all trials in one picture. With
# `models` set, it also compares saved networks, dense or compressed, on one data set: quality on test, size, and time.

# %%
# Set-up: on Colab, fetch the suite and install what is missing; elsewhere, only change to its folder.
import os
import subprocess
import sys
from pathlib import Path

if "google.colab" in sys.modules and not Path("common").is_dir():
    if not Path("low-rank-cnn").is_dir():
        _source = os.environ.get("LOW_RANK_CNN_SOURCE", "https://github.com/low-rank-cnn/low-rank-cnn")
        subprocess.run(["git", "clone", "--quiet", "--depth=1", _source, "low-rank-cnn"], check=True)
    subprocess.run([sys.executable, "-m", "common.notebook.colab"], cwd="low-rank-cnn", check=True)
_suite = [p for p in (Path.cwd(), *Path.cwd().parents, Path("low-rank-cnn")) if (p / "common" / "notebook").is_dir()]
assert _suite, f"{Path.cwd()} is not inside the suite; start there, or give papermill --cwd and the suite's folder"
os.chdir(_suite[0])
sys.path.insert(0, str(Path.cwd()))

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
from common.notebook.config import CompareConfig

config = CompareConfig.from_notebook(globals())
print(config)

# %% [markdown]
# ## The runs

# %%
from common.notebook.evidence import compare_networks
from common.notebook.steps import load_data_of
from common.reporting import figures
from common.reporting.frame import Trials
from common.reporting.runs import Log, find_logs
from common.reporting.tables import format_summary, methods_table, summary_table

paths = sorted(Path(config.logs).glob("*.log")) if config.files else find_logs([config.logs])
trials = Trials.read([Log(path) for path in paths])
format_summary(summary_table(trials, config.keep))

# %%
print(methods_table(trials, config.keep).console())

# %%
figures.pareto(trials)

# %%
figures.radar(trials, config.keep)

# %% [markdown]
# ## Saved networks

# %%
compare_networks(config.files, load_data_of(config)) if config.files else "models names no network"
