"""Run all code of ``docs/extending.md`` in one process, and use every entry by its name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
USE = """
from common.compression import compress
from common.data import load_data
from common.latency import measure_latency
from common.models import build_model
from common.planning import Budget, plan_ranks
from common.search import SearchSettings, search_ranks
from common.training import TrainingSettings, evaluate, train

data, model = load_data("shades", metric="top3", batch_size=50), build_model("lenet", 10)
train(model, data, TrainingSettings(epochs=1.0, amp="off"))
x = data.example()
for rule in (Above(0.2, only_if_smaller=False), Budget(params=0.8)):
    plan = plan_ranks(model, x, "input_svd", rule)
    print(rule, {layer.method for layer in plan.factored.values()})
small = compress(model, plan)
print(sorted(evaluate(small, data.test)), measure_latency(small, x, runtime="autocast", rounds=3).runtime)
settings = SearchSettings(method="input_svd", policy="qmc", trials=2, finetune_top=0)
records = search_ranks(model, data, settings, logs="logs", run="run", on_trial=lambda _: None).records
print({(record.model, record.dataset, record.metric, record.method, record.rule) for record in records})
"""


def test_its_code_runs(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "extending.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 7
    program = "\n".join([*blocks, USE])
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    above, budget, figures, searched = done.stdout.splitlines()
    assert above.startswith("Above(") and "input_svd" in above  # noqa: PT018
    assert budget.startswith("Budget(") and "input_svd" in budget  # noqa: PT018
    assert figures == "['accuracy', 'loss', 'top3'] PyTorch bfloat16"
    assert searched == "{('lenet', 'shades', 'top3', 'input_svd', 'qmc sampler')}"
