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
# # VGG16, low-rank: memory against MACs
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/low-rank-cnn/low-rank-cnn/blob/main/notebooks/vgg16.ipynb)
#
# A VGG16 is two networks in one: three Linear layers with nine tenths of its 134 million parameters, and thirteen
# convolutions with nearly all of its MACs. This notebook shrinks both, and shows that **memory and speed are won in
# different layers**: a budget of parameters goes to the Linear layers, a budget of MACs to the convolutions.
#
# Every trial is a line in `logs/`; `python analyze_results.py` turns them into tables and pictures.

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
#
# Change them here, or from outside: `papermill notebooks/vgg16.ipynb out.ipynb -p dataset mnist -p data_root data`.
# `common/notebook/config.py` lists a few more, with their allowed values.

# %% tags=["parameters"]
dataset = "digits"  # digits (embedded), mnist, cifar10 or imagefolder
data_root = None  # folder that holds the data set; digits needs none
download = False  # fetch the data set into data_root
image_size = 32  # pixels, height and width
batch_size = 64
weights = None  # trained weights from finetuned/finetune.py; None trains the dense network here
pretrained = None  # torchvision's weights to start from, e.g. "DEFAULT" (needs a network)
optimizer = "adamw"  # sgd or adamw
dense_epochs = 5.0  # passes over the data when the dense network is trained here
dense_learning_rate = 0.0003  # peak of its one-cycle schedule
svd_ranks = "32"  # fixed-rank SVD to compare with, e.g. "16,32,64"
arsvd_taus = "0.5"  # ARSVD (entropy threshold) to compare with, e.g. "0.3,0.5,0.7"
compare_at = 0.1  # share of the parameters at which all methods are compared and fine-tuned; None compares none
method = "htd"  # that the policy searches with: svd, spatial_svd, tucker2, htd, cp, or mixed (with a budget)
policy = "adaptive"  # adaptive, static, a rank rule (uniform, energy, vbmf, budget), random, tpe or nsga2
budget_params = None  # share of the parameters to keep, e.g. 0.3; with None the score weighs size against accuracy
trials = 6  # number of plans that the policy samples
keep = 0.99  # a trial is accepted when it keeps this share of the dense accuracy
finetune_top = 1  # number of best trials that are fine-tuned
finetune_epochs = 1.0  # of each of them, at most 3
finetune_learning_rate = 0.0001  # peak of its schedule
seed = 0
logs = "logs"  # folder of the logs
run = None  # name of this run's log; None makes one of model, data set, method and time

# %%
from common.notebook import evidence, lessons, steps
from common.notebook.config import ClassifierConfig
from common.reporting import figures, tables

(config := ClassifierConfig.from_notebook(globals()))

# %% [markdown]
# ## Data and the dense network

# %%
data = steps.load_data_of(config)
dense, history = steps.dense_network(config, "vgg16", data)
figures.training_curves(history)

# %% [markdown]
# *What to see:* left, the loss on training and on validation batches; right, the metrics on validation, which reach
# the figure that every compressed network is measured against. With `weights` given, nothing is trained here.

# %% [markdown]
# ## Rank rules
#
# Each layer is decomposed once; every rank is then a slice. The table shows what each rule keeps of the network.
# `Change` is counted in the whole network, with the layers that stay dense.

# %%
decompositions = steps.decompose(config, dense, data)
plans = steps.rule_plans(config, dense, data, decompositions)
lessons.plans_table(dense, data, plans)

# %%
figures.spectra(decompositions.spectra(), evidence.chosen_ranks(plans))

# %% [markdown]
# *What to see:* one panel for each stage, one curve for each layer: how large the singular values still are at each
# share of the full rank. A curve that falls early belongs to a layer that can do with few ranks. The dots are the
# ranks that the last plan gives.

# %%
lessons.readable(evidence.layer_table(dense, data, plans, decompositions), "What the last plan does to each layer")

# %% [markdown]
# ## Policy-guided search
#
# Each trial is measured on validation after BatchNorm recalibration and, for the best few, after fine-tuning. The rank
# rules come first, for comparison. After ten trials, those that look poor on a part of validation are stopped early.
# If the notebook is stopped and `run` is set, run it again: the search continues.

# %%
(result := steps.search(config, dense, data, plans, decompositions))

# %% [markdown]
# *What to see:* metric against size, one mark for each trial; the staircase joins the trials that no other beats in
# both. The further up and left, the better; the star is the dense network, and hollow marks were not fine-tuned. Below
# it, each trial has a line: what is left of parameters and MACs, and the metric after each stage. A trial that is
# fine-tuned or tested has a second line.

# %% [markdown]
# ## The lesson: one size, several methods
#
# The same network, the same share of its parameters and the same fine-tuning: what does the method make of it? Raw is
# the network as it was cut, recalibrated has new BatchNorm statistics, fine-tuned was trained with the dense network
# as its teacher. Nine tenths of the parameters lie in the Linear layers, and there SVD, Tucker-2 and HTD are the same
# SVD; what sets them apart is what they do to the convolutions. ARSVD thresholds the entropy of each layer by itself.

# %%
lessons.equal_sizes(result.records, config.compare_at)

# %% [markdown]
# ## Memory: what the Linear layers weigh

# %%
networks = steps.chosen_networks(dense, result)
lessons.memory_table(networks, data)

# %% [markdown]
# Compare the two halves of a row: the bytes lie in the Linear layers, the MACs in the convolutions. The chosen
# networks are those with the fewest parameters, the fewest MACs and the greatest speedup, and they need not be the
# same network.

# %%
figures.where_it_goes(lessons.shown_trial(result.records, result.best))

# %% [markdown]
# *What to see:* the smallest accepted network layer by layer, dense (blue) and compressed (orange). A layer can hold
# few parameters and take most of the time. The right panel shows how far the layer's output is off.

# %%
figures.sensitivities(result.sensitivities, result.layer_sizes)

# %% [markdown]
# *What to see:* how much the network's output moves (its divergence, in nats) when this layer alone is cut to a tenth.
# Long bars are layers to leave alone; the size of the layer stands beside it.

# %%
evidence.policy_picture(result)

# %% [markdown]
# *What to see:* for each layer, the probability of each size before the trials (left) and after them (right).
# Sensitive layers start with larger sizes; the trials then move the probability toward what the best trials had in
# common.

# %% [markdown]
# ## Results

# %%
figures.radar(result.records, config.keep)

# %% [markdown]
# *What to see:* a polygon for each method, its smallest accepted network: metric kept, what was removed of parameters,
# MACs and file, and the speedup. Further out is better, so a larger polygon is a better network all round.

# %% [markdown]
# With `precisions`, e.g. `float32,int8`, the networks are written as ONNX files beside the log. The table shows what
# each file reaches on test, its size, and its time beside the dense network's in float32.

# %%
files = evidence.deployment_table(networks, data, result.log.with_suffix(""), config.precision_list)
lessons.readable(files, "Files in ONNX Runtime")

# %%
tables.format_summary(tables.summary_table(result.records, config.keep))
