from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from common.training import TrainingSettings, distributed, train
from tests.networks import tiny_digits

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
import safetensors.torch
from common.training import distributed
from tests.training.test_distributed import trained

with distributed.processes():
    file = f"{sys.argv[1]}/{distributed.rank()}-of-{distributed.world_size()}"
    safetensors.torch.save_file(trained().state_dict(), file)
"""


def trained() -> nn.Module:
    """A trained network without BatchNorm, since BatchNorm would see only a part of each batch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10))
    train(model, tiny_digits(), TrainingSettings(epochs=2.0, learning_rate=0.05, amp="off"))
    return model


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(tmp_path)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    alone = trained().state_dict()
    for rank in (0, 1):
        together = safetensors.torch.load_file(tmp_path / f"{rank}-of-2")
        assert together.keys() == alone.keys()
        for name, tensor in together.items():
            torch.testing.assert_close(tensor, alone[name], rtol=1e-4, atol=1e-5)


def test_a_single_process_needs_no_group() -> None:
    with distributed.processes():
        assert (distributed.rank(), distributed.world_size()) == (0, 1)
        assert distributed.from_first({"a": 1}) == {"a": 1}
        model = nn.Linear(1, 1)
        assert distributed.parallel(model) is model
