# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own network, low-rank
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/low-rank-cnn/low-rank-cnn/blob/main/notebooks/own.ipynb)
#
# This notebook takes your network and your data, and writes a smaller and faster network as ONNX files, with a report.
# It runs in your own folder: your modules are imported from there, and paths start there. The same in one command:
# `python -m common.shrink --help`.

# %%
# Set-up: on Colab, fetch the suite and install what is missing; elsewhere, find it. The folder stays yours.
import os
import sys
from importlib.util import find_spec
from pathlib import Path

if "google.colab" in sys.modules and not (Path("common").is_dir() or Path("low-rank-cnn").is_dir()):
    os.system("git clone -q --depth=1 ${SUITE_SOURCE:-https://github.com/low-rank-cnn/low-rank-cnn} low-rank-cnn")
sys.path[:0] = [str(p) for p in Path("low-rank-cnn/-").absolute().parents if (p / "common/notebook").is_dir()][:1]
assert find_spec("common"), f"{Path.cwd()} is not inside the suite, and no wheel of it is installed"

from common.notebook import colab

colab.enter_suite(Path.cwd())

# %% [markdown]
# ## Parameters
#
# Change them here, or from outside: `papermill own.ipynb out.ipynb -p network my_network:build -p dataset imagefolder
# -p data_root photos`. `common/notebook/own_config.py` and `common/notebook/config.py` list a few more.

# %% tags=["parameters"]
network = "resnet20"  # my_network:build (a function of yours), or a name of this suite, of torchvision or of timm
weights = None  # safetensors file of the state dict; None where the function loads them
pretrained = False  # download the published weights of a named architecture
dense_epochs = 3.0  # passes over the data to train a named architecture without weights; your function's is left alone
dataset = "digits"  # my_network:loaders, or digits, mnist, cifar10, imagefolder, coco or phantoms
data_root = None  # folder that holds the data set, e.g. train/<class>/ and val/<class>/ for imagefolder
image_size = 32  # pixels, height and width
normalize = "dataset"  # scale of the inputs: dataset, imagenet, centred ([-1, 1]) or unit ([0, 1])
batch_size = 32
limit = None  # use at most this many images of each split
budget_params = 0.5  # share of the parameters to keep; None for no limit
budget_macs = None  # share of the MACs to keep
method = "mixed"  # svd, spatial_svd, tucker2, htd, cp, or mixed (the best for each layer)
methods = "svd,tucker2,htd,cp,mixed"  # to compare within the same budget
search = False  # search the ranks by trials, too; needs targets
trials = 20  # of that search
keep = 0.99  # a trial of the search is accepted when it keeps this share of the dense metric
finetune = True  # also fine-tune the small network, and the dense one beside it; needs targets
finetune_epochs = 1.0  # at most 5
precisions = "float32,int8"  # of the ONNX files: float32, float16, int8
out = "results/small"  # folder for the files
seed = 0

# %%
from common.notebook.own_config import OwnConfig

print(config := OwnConfig.from_notebook(globals()))

# %% [markdown]
# ## The network and the data

# %%
from common.notebook import own
from common.notebook.colab import copy_to_drive
from common.reporting import figures

examples, dense, history = own.load(config)
figures.training_curves(history)

# %% [markdown]
# *What to see:* the training of an architecture that came without weights; the curves should flatten. Your trained
# network has none.
#
# ## Shrink
#
# Each step prints how far the outputs moved from the dense network's, on images held out from the calibration. Below
# stand the ranks of each layer, and why a layer stays dense.

# %%
found = own.shrink_network(config, dense, examples)
print(found, found.plan, sep="\n\n")

# %% [markdown]
# ## Methods within the same budget
#
# Each method gets the same budget, data and steps, without training.

# %%
table = own.compare_methods(config, dense, examples, found)
table.round(4)

# %%
figures.bars(own.method_panels(table))

# %% [markdown]
# *What to see:* a short bar on the left means outputs near the dense network's. Where there are targets, a long bar on
# the right is a better network. If another method is better here, set `method` to it.
#
# ## Search and fine-tuning

# %%
result = own.search_if_asked(config, dense, examples)
figures.pareto(result.records if result else [])

# %% [markdown]
# *What to see:* a mark for each trial of the search; look for marks above the others at the same size. Without a
# search there is none.

# %%
tuned, history = own.finetune(config, dense, found.model, examples)
figures.training_curves(history)

# %% [markdown]
# *What to see:* the fine-tuning of the small network; the metric on the right should rise.
#
# ## Files
#
# Every network is written as ONNX files into `out`, with `report.html` beside them. int8 takes its ranges from the
# calibration images.

# %%
trials_best = {f"trial{number}": best for number, best in (result.best_networks if result else {}).items()}
report = own.deploy(config, found, {"dense": dense, "small": found.model, **tuned, **trials_best}, examples)
copy_to_drive(sorted(path for path in Path(config.out).iterdir() if path.is_file()))
print(report.summary())

# %%
report.picture()

# %% [markdown]
# *What to see:* each small network beside the dense one, and each int8 file beside its float32 file. Shorter is better
# for size and time, and for a divergence. A metric should be as long as the dense network's.
