from __future__ import annotations

from pathlib import Path

import pytest
import tensorly
import torch

from benchmarks import peers
from common.compression import save_compressed
from common.models import build_model
from common.network import profile

X = torch.zeros(1, 3, 8, 8)


def test_every_peer_keeps_to_the_share_and_has_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    weights = save_compressed(build_model("resnet20", 10), tmp_path / "dense.safetensors")
    arguments = ["--weights", str(weights), "--dataset", "digits", "--image-size", "8", "--limit", "32"]
    peers.main([*arguments, "--kept", "0.5", "--runtime", "eager", "--rounds", "3", "--methods", "tucker2"])
    lines = [line.strip("|").split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    rows = {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines[2:]}
    expected = ["dense", "TensorLy, defaults", "TensorLy, one iteration", "TensorLy-Torch, defaults"]
    assert [title for title in rows if not title.startswith("FasterAI")] == [
        *expected,
        "ours, Tucker-2 of the weights",
        "ours, shrink by tucker2",
    ]
    for title, row in rows.items():
        if title != "dense":
            assert 20 < float(row[0].rstrip("%")) <= 50
            assert row[5].endswith(" s")
    same = "TensorLy, defaults", "ours, Tucker-2 of the weights"
    assert rows[same[0]][:2] == rows[same[1]][:2]


def test_the_fraction_is_the_greatest_that_fits() -> None:
    tensorly.set_backend("pytorch")
    model = build_model("resnet20", 10).eval()
    _, quick, make = next(iter(peers.makers(model, X)))
    most = 0.4 * profile(model, X).macs
    kept = peers.greatest_fraction(quick, X, "macs", most)
    assert profile(make(kept), X).macs <= most < profile(make(kept + 0.01), X).macs
    with pytest.raises(ValueError, match="no fraction of the ranks keeps macs to 10"):
        peers.greatest_fraction(quick, X, "macs", 10)
