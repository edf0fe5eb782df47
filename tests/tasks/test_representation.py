from __future__ import annotations

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from medlight.tasks.probe import OnlineProbe
from medlight.tasks.representation import accuracy, effective_rank, feature_std, knn_accuracy


def test_effective_rank_of_known_matrices():
    assert effective_rank(torch.eye(7)) == pytest.approx(7)
    assert effective_rank(torch.outer(torch.arange(1.0, 9), torch.randn(5))) == pytest.approx(1, abs=1e-4)
    turned = torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64))[0][:, :3] @ torch.diag(
        torch.tensor([2.0, 1, 1]).double()
    )
    assert effective_rank(turned) == pytest.approx(math.exp(0.5 * math.log(2) + 0.5 * math.log(4)))
    assert effective_rank(turned.T) == pytest.approx(effective_rank(turned))
    assert effective_rank(torch.zeros(4, 3)) == 0


def test_standard_deviation_tells_collapse():
    torch.manual_seed(0)
    assert feature_std(torch.ones(50, 16)) == 0
    assert feature_std(torch.randn(2000, 16)) == pytest.approx(1 / 4, rel=0.02)


@pytest.mark.parametrize("neighbours", [1, 5, 500])
def test_neighbours_vote_as_in_sklearn(neighbours):
    torch.manual_seed(0)
    bank, found = torch.randn(60, 6), torch.randn(1500, 6)
    bank_truth, truth = torch.randint(0, 3, (60,)), torch.randint(0, 3, (1500,))
    k = min(neighbours, 60)
    oracle = KNeighborsClassifier(k, metric="cosine", weights=lambda d: torch.tensor(-d / 0.07).exp().numpy())
    oracle.fit(bank.numpy(), bank_truth.numpy())
    expected = oracle.score(found.numpy(), truth.numpy())
    hidden = torch.cat([truth, torch.full((9,), -1)])
    more = torch.cat([found, torch.randn(9, 6)])
    assert knn_accuracy(more, hidden, bank, bank_truth, neighbours) == pytest.approx(expected, abs=1e-3)
    assert math.isnan(knn_accuracy(found, truth * 0 - 1, bank, bank_truth, neighbours))


def test_the_probe_learns_what_a_regression_learns():
    torch.manual_seed(0)
    truth = torch.randint(0, 3, (600,))
    features = 5 + 3 * torch.randn(600, 8) + 4 * torch.nn.functional.one_hot(truth, 8)
    probe = OnlineProbe(8, 3, lr=1.0)
    for _ in range(20):
        for part in torch.randperm(600).split(60):
            probe.learn(features[part], torch.where(part < 500, truth[part], -1))
    oracle = LogisticRegression().fit(features[:500].numpy(), truth[:500].numpy())
    assert accuracy(probe(features), truth) == pytest.approx(oracle.score(features.numpy(), truth.numpy()), abs=0.02)
    assert not list(probe.parameters())
    torch.testing.assert_close(probe.mean, features.mean(0), atol=0.3, rtol=0)
