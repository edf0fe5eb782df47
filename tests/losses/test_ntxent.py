from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.losses import ContrastiveLoss

from medlight.losses import NTXent, ntxent

ROOT = Path(__file__).parents[2]


def by_hand(first, second, temperature):
    """Equation 1 of the paper, sample by sample."""
    vectors = [*first, *second]
    n, total = len(first), 0.0
    for i, one in enumerate(vectors):
        partner = (i + n) % (2 * n)
        similar = [torch.cosine_similarity(one, other, dim=0) / temperature for other in vectors]
        others = torch.stack([value for k, value in enumerate(similar) if k != i])
        total = total - torch.log(similar[partner].exp() / others.exp().sum())
    return total / (2 * n)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_equals_the_paper_and_monai(temperature):
    torch.manual_seed(0)
    first, second = (torch.randn(7, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    ours, oracle = NTXent(temperature)(first, second), by_hand(first, second, temperature)
    torch.testing.assert_close(ours, oracle)
    torch.testing.assert_close(ours.float(), ContrastiveLoss(temperature)(first.float(), second.float()))
    for a, b in zip(*[torch.autograd.grad(loss, (first, second)) for loss in (ours, oracle)], strict=True):
        torch.testing.assert_close(a, b)


def test_all_samples_at_once_in_blocks(monkeypatch):
    torch.manual_seed(0)
    first, second = torch.randn(2, 11, 5)
    whole = NTXent()(first, second)
    monkeypatch.setattr(ntxent, "BLOCK", 4)
    torch.testing.assert_close(NTXent().local(first, second), whole)
    order = torch.randperm(11)
    torch.testing.assert_close(NTXent().local(second[order], first[order]), whole)


def test_a_temperature_of_zero_is_refused():
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="temperature"):
            NTXent(wrong)


def run(module: str, *arguments: object) -> None:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PL_", "MEDLIGHT_"))}
    environment = inherited | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("loss", ["NTXent", "VICReg"])
def test_two_processes_give_the_loss_and_gradient_of_one(loss, tmp_path):
    found = {}
    for ranks in (1, 2):
        run("tests.losses.ranks", ranks, loss, tmp_path)
        found[ranks] = [torch.load(tmp_path / f"{loss}-{ranks}-{rank}.pt") for rank in range(ranks)]
    (one,), two = found[1], found[2]
    mean = sum(rank["loss"] for rank in two) / 2
    torch.testing.assert_close(mean, one["loss"], atol=1e-6, rtol=0)
    for rank in two:
        assert one["gradient"].abs().max() > 1e-3
        torch.testing.assert_close(rank["gradient"], one["gradient"], atol=1e-6, rtol=0)


def test_two_processes_train_the_weights_of_one(tmp_path):
    found = {}
    for ranks in (1, 2):
        run("tests.losses.simclr_fit", ranks, tmp_path)
        found[ranks] = [torch.load(tmp_path / f"fit-{ranks}-{rank}.pt") for rank in range(ranks)]
    (one,), two = found[1], found[2]
    for rank in two:
        moved = 0.0
        for name, value in one["weights"].items():
            moved = max(moved, float((value - one["start"][name]).abs().max()))
            torch.testing.assert_close(rank["weights"][name], value, atol=1e-6, rtol=1e-5)
        assert moved > 1e-3
        for name, value in one["metrics"].items():
            if name != "train/loss_step":  # each rank's own
                assert rank["metrics"][name] == pytest.approx(value, abs=1e-5), name
