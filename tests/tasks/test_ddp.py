from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def fit(processes: int, kind: str, folder: Path) -> list[dict]:
    """What each rank ended with; always a fresh process, since earlier tests leave seeds in the environment."""
    command = [sys.executable, "-m", "tests.tasks.ddp_fit", str(processes), kind, str(folder)]
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PL_", "MEDLIGHT_"))}
    environment = inherited | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{kind}-{processes}-{rank}.pt", weights_only=True) for rank in range(processes)]


@pytest.mark.parametrize("kind", ["segmentation", "mean_teacher"])
def test_two_processes_equal_one(kind, tmp_path):
    (one,) = fit(1, kind, tmp_path)
    first, second = fit(2, kind, tmp_path)
    for name, value in one["weights"].items():
        assert torch.allclose(value, first["weights"][name], atol=1e-5), name
        assert torch.equal(first["weights"][name], second["weights"][name])
    for name, value in one["metrics"].items():
        if name != "train/loss_step":  # each rank's own
            assert first["metrics"][name] == pytest.approx(value, abs=1e-4), name
            assert first["metrics"][name] == second["metrics"][name], name
    assert first["rows"] == second["rows"]
    assert [row["case_id"] for row in first["rows"]] == [row["case_id"] for row in one["rows"]] == list(range(100, 105))


def test_a_classifiers_scores_are_over_all_ranks(tmp_path):
    first, second = fit(2, "classification", tmp_path)
    assert [row["case_id"] for row in first["rows"]] == list(range(1000, 1015))
    assert {k: v for k, v in first["metrics"].items() if k.startswith("val/")} == {
        k: v for k, v in second["metrics"].items() if k.startswith("val/")
    }
    from sklearn.metrics import roc_auc_score

    truth = [row["target"] for row in first["rows"]]
    scores = [[row[f"probability/class {c}"] for c in range(3)] for row in first["rows"]]
    scores = torch.tensor(scores, dtype=torch.float64)
    scores /= scores.sum(1, keepdim=True)
    expected = roc_auc_score(truth, scores.numpy(), multi_class="ovr", average="macro")
    assert first["metrics"]["val/auroc"] == pytest.approx(expected, abs=1e-6)
