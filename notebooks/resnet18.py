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
# # ResNet18, low-rank: where the ranks go
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/low-rank-cnn/low-rank-cnn/blob/main/notebooks/resnet18.ipynb)
#
# A ResNet18 has twenty convolutions, and no two need the same rank. This notebook takes a trained one, looks at what
# each layer can lose, searches for ranks that hardly cost accuracy, and shows **where the ranks go**: the last stage
# holds three quarters of the parameters and gives most of them up; the shortcuts and the head hold almost none and
# mostly stay dense.
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
# Change them here, or from outside: `papermill notebooks/resnet18.ipynb out.ipynb -p dataset mnist -p data_root data`.
# `common/notebook/config.py` lists a few more, with their allowed values.

# %% tags=["parameters"]
dataset = "digits"  # digits (embedded), mnist, cifar10 or imagefolder
data_root = None  # folder that holds the data set; digits needs none
download = False  # fetch the data set into data_root
image_size = 48  # pixels, height and width
batch_size = 64
weights = None  # trained weights from finetuned/finetune.py; None trains the dense network here
pretrained = None  # torchvision's weights to start from, e.g. "DEFAULT" (needs a network)
optimizer = "sgd"  # sgd or adamw
dense_epochs = 5.0  # passes over the data when the dense network is trained here
dense_learning_rate = 0.1  # peak of its one-cycle schedule
svd_ranks = "32"  # fixed-rank SVD to compare with, e.g. "16,32,64"
arsvd_taus = "0.5"  # ARSVD (entropy threshold) to compare with, e.g. "0.3,0.5,0.7"
compare_at = 0.2  # share of the parameters at which all methods are compared and fine-tuned; None compares none
method = "htd"  # that the policy searches with: svd, spatial_svd, tucker2, htd, cp, or mixed (with a budget)
policy = "adaptive"  # adaptive, static, a rank rule (uniform, energy, vbmf, budget), random, tpe or nsga2
budget_params = None  # share of the parameters to keep, e.g. 0.3; with None the score weighs size against accuracy
trials = 12  # number of plans that the policy samples
keep = 0.99  # a trial is accepted when it keeps this share of the dense accuracy
finetune_top = 2  # number of best trials that are fine-tuned
finetune_epochs = 1.0  # of each of them, at most 3
finetune_learning_rate = 0.02  # peak of its schedule
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
dense, history = steps.dense_network(config, "resnet18", data)
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
# as its teacher. ARSVD cuts every layer by its own entropy and knows nothing of the budget; the others share the
# budget out where it harms least. Fine-tuning brings the methods closer, and recalibration alone already shows which
# had further to come. Mind the MACs: one size in parameters is not one size in MACs.

# %%
lessons.equal_sizes(result.records, config.compare_at)

# %% [markdown]
# ## Where the ranks go
#
# Two things decide a layer's rank: how much its error harms the output, and how many parameters its ranks cost.

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

# %%
figures.rank_heatmap(result.records)

# %% [markdown]
# *What to see:* a row for each layer, a column for each trial, the smallest first; the brighter, the nearer to full
# rank. A grey row is a layer that stays dense, because it is small and the output hangs on it. The dark rows at the
# bottom are the last stage. A fixed rank and ARSVD treat all layers alike; budgets and the search do not.

# %%
figures.where_it_goes(lessons.shown_trial(result.records, result.best))

# %% [markdown]
# *What to see:* the smallest accepted network layer by layer, dense (blue) and compressed (orange). A layer can hold
# few parameters and take most of the time. The right panel shows how far the layer's output is off.

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
networks = steps.chosen_networks(dense, result)
files = evidence.deployment_table(networks, data, result.log.with_suffix(""), config.precision_list)
lessons.readable(files, "Files in ONNX Runtime")

# %%
tables.format_summary(tables.summary_table(result.records, config.keep))
