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
# # AlexNet, low-rank
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/low-rank-cnn/low-rank-cnn/blob/main/notebooks/alexnet.ipynb)
#
# This notebook shrinks a trained AlexNet where it is large: over 90% of its parameters lie in the three Linear layers,
# which the work that it follows left unchanged. Every trial is a line in `logs/`; `python analyze_results.py` turns
# them into tables and pictures.

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
#
# Change them here, or from outside: `papermill notebooks/alexnet.ipynb out.ipynb -p dataset mnist -p data_root data`.
# `common/notebook/config.py` lists a few more, with their allowed values.

# %% tags=["parameters"]
dataset = "digits"  # digits (embedded), mnist, cifar10 or imagefolder
data_root = None  # folder that holds the data set; digits needs none
download = False  # fetch the data set into data_root
image_size = 64  # pixels, height and width
batch_size = 64
weights = None  # trained weights from finetuned/finetune.py; None trains the dense network here
pretrained = None  # torchvision's weights to start from, e.g. "DEFAULT" (needs a network)
optimizer = "adamw"  # sgd or adamw
dense_epochs = 10.0  # passes over the data when the dense network is trained here
dense_learning_rate = 0.0005  # peak of its one-cycle schedule
svd_ranks = "16,32,64"  # fixed-rank SVD to compare with
arsvd_taus = "0.3,0.5,0.7"  # ARSVD (entropy threshold) to compare with
compare_at = None  # share of the parameters at which all methods are compared and fine-tuned; None compares none
method = "htd"  # that the policy searches with: svd, spatial_svd, tucker2, htd, or mixed (with a budget)
policy = "adaptive"  # adaptive, static, a rank rule (uniform, energy, vbmf, budget), random, tpe or nsga2
budget_params = None  # share of the parameters to keep, e.g. 0.3; with None the score weighs size against accuracy
trials = 20  # number of plans that the policy samples
keep = 0.99  # a trial is accepted when it keeps this share of the dense accuracy
finetune_top = 4  # number of best trials that are fine-tuned
finetune_epochs = 3.0  # of each of them, at most 3
finetune_learning_rate = 0.0002  # peak of its schedule
seed = 0
logs = "logs"  # folder of the logs
run = None  # name of this run's log; None makes one of model, data set, method and time

# %%
from common.notebook.config import ClassifierConfig

print(config := ClassifierConfig.from_notebook(globals()))

# %% [markdown]
# ## Data and the dense network

# %%
from common.notebook.colab import copy_run
from common.notebook.evidence import chosen_ranks, deployment_table, layer_table
from common.notebook.steps import decompose, dense_network, load_data_of, rule_plans, search
from common.reporting import figures
from common.reporting.tables import format_summary, summary_table
from common.search import LEVEL_NAMES

data = load_data_of(config)
dense, history = dense_network(config, "alexnet", data)
figures.training_curves(history)

# %% [markdown]
# ## Rank rules
#
# Each layer is decomposed once; every rank is then a slice. The spectra show how much of a layer's output a rank keeps
# (of its weight, when `data_aware` is off). The dots are the ranks of the last rule; the table shows what that rule
# does to each layer.

# %%
decompositions = decompose(config, dense, data)
plans = rule_plans(config, dense, data, decompositions)
print(*plans, sep="\n")

# %%
figures.spectra(decompositions.spectra(), chosen_ranks(plans))

# %%
layer_table(dense, data, plans, decompositions)

# %% [markdown]
# ## Policy-guided search
#
# Each trial prints one line: its accuracy on validation after BatchNorm recalibration and, for the best few, after
# fine-tuning. The picture follows the search. The rank rules come first, for comparison. After ten trials, those that
# look poor on a part of validation are stopped early. If the notebook is stopped and `run` is set, run it again: the
# search continues.

# %%
result = search(config, dense, data, plans, decompositions)

# %% [markdown]
# The first picture shows how sensitive each layer is: the divergence of the network's output, in nats, when that layer
# alone is cut to a tenth. The second shows the policy that follows from it, before and after the trials.

# %%
figures.sensitivities(result.sensitivities, result.layer_sizes)

# %%
figures.policy_heatmap(result.last_policy, LEVEL_NAMES, "Share of a layer's parameters", before=result.first_policy)

# %% [markdown]
# ## Results

# %%
figures.radar(result.records, config.keep)

# %% [markdown]
# With `precisions`, e.g. `float32,int8`, the networks are written as ONNX files beside the log. The table shows what
# each file reaches on test, its size, and its time beside the dense network's in float32.

# %%
deployment_table({"dense": dense, **result.best_networks}, data, result.log.with_suffix(""), config.precision_list)

# %%
copy_run(result.log.parent, result.log.stem)
format_summary(summary_table(result.records, config.keep))
