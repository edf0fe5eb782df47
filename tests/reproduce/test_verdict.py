"""Verdicts by the rule, intervals and tests against formulas of their own."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from medlight.reproduce import verdict
from medlight.reproduce.expected import Claim, Value
from medlight.reproduce.verdict import Measured, difference, judge, sample


def dice_run(seed: int, values: np.ndarray) -> Measured:
    rows = {f"case-{index:03d}": {"dice/a": float(v)} for index, v in enumerate(values)}
    return Measured(seed, {"test/dice": float(np.mean(values))}, {"test": rows})


def class_run(seed: int, scores: np.ndarray, truth: np.ndarray) -> Measured:
    rows = {}
    for index, (p, t) in enumerate(zip(scores, truth, strict=True)):
        row = {
            "target": float(t),
            "predicted": float(p > 0.5),
            "probability/0": 1 - float(p),
            "probability/1": float(p),
        }
        rows[f"case-{index:03d}"] = row
    return Measured(seed, {"test/auroc": roc_auc_score(truth, scores)}, {"test": rows})


def rank_auroc(scores: np.ndarray, truth: np.ndarray) -> float:
    """By the sum of ranks."""
    positive = int(truth.sum())
    ranks = stats.rankdata(scores)[truth == 1].sum()
    return (ranks - positive * (positive + 1) / 2) / (positive * (len(truth) - positive))


def bare(*values: float) -> list[Measured]:
    """Runs without cases."""
    return [Measured(seed, {"val/probe": value}, {}) for seed, value in enumerate(values)]


def value(published: float, tolerance: float = 0.02, at_least: bool = False) -> Value:
    return Value("a", "val/probe", published, tolerance, "", "", at_least)


@pytest.mark.parametrize(
    ("runs", "entry", "said"),
    [
        (bare(0.89, 0.90, 0.91), value(0.9), "reproduced"),
        (bare(0.88, 0.88, 0.88), value(0.9), "reproduced"),  # on the edge
        (bare(0.80, 0.801, 0.802), value(0.9), "not reproduced"),
        (bare(0.80, 0.85, 0.95), value(0.9), "undecided"),
        (bare(0.99, 0.991, 0.992), value(0.9), "not reproduced"),
        (bare(0.99, 0.991, 0.992), value(0.9, at_least=True), "reproduced"),
        (bare(0.80, 0.801, 0.802), value(0.9, at_least=True), "not reproduced"),
        (bare(0.90, 0.90), value(0.9), "incomplete"),
        ([], value(0.9), "incomplete"),
    ],
)
def test_published_values(runs: list[Measured], entry: Value, said: str) -> None:
    assert judge(entry, {"a": runs}, 3, "full").verdict == said
    assert judge(entry, {"a": runs}, 3, "quick").verdict == "smoke"


def test_one_seed_without_cases_can_only_agree_or_be_undecided() -> None:
    assert judge(value(0.9), {"a": bare(0.9)}, 1, "full").verdict == "reproduced"
    assert judge(value(0.9), {"a": bare(0.1)}, 1, "full").verdict == "undecided"


@pytest.mark.parametrize(
    ("values", "text", "said"),
    [
        ((0.80, 0.81, 0.82), "a > 0.7", "claim holds"),
        ((0.80, 0.81, 0.82), "a > 0.9", "claim fails"),
        ((0.80, 0.81, 0.82), "a < 0.9", "claim holds"),
        ((0.60, 0.71, 0.82), "a > 0.7", "undecided"),
        ((0.80, 0.81), "a > 0.7", "incomplete"),
    ],
)
def test_claims_against_a_number(values: tuple[float, ...], text: str, said: str) -> None:
    side, number = ("a", "val/probe"), float(text.split()[-1])
    claim = Claim(text, side, number, "") if ">" in text else Claim(text, number, side, "")
    found = judge(claim, {"a": bare(*values)}, 3, "full")
    assert found.verdict == said
    sign = 1 if ">" in text else -1
    assert found.sample.mean == pytest.approx(sign * (np.mean(values) - number))
    test = stats.ttest_1samp(values, number)
    assert found.sample.p == pytest.approx(test.pvalue)


def test_the_interval_over_seeds_is_students() -> None:
    found = sample(bare(0.80, 0.83, 0.87), "val/probe")
    low, high = stats.t.interval(0.95, 2, loc=found.mean, scale=stats.sem([0.80, 0.83, 0.87]))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert (found.over, found.cases) == ("seeds", 0)
    assert found.sd == pytest.approx(np.std([0.80, 0.83, 0.87], ddof=1))


def wider(bootstrap: np.ndarray, per_seed: np.ndarray) -> tuple[float, float]:
    """The wider at each end of an interval and Student's over the seeds."""
    low, high = stats.t.interval(0.95, len(per_seed) - 1, loc=np.mean(per_seed), scale=stats.sem(per_seed))
    return min(bootstrap[0], low), max(bootstrap[1], high)


@pytest.mark.parametrize("apart", [0.001, 0.02])  # where cases, and where seeds, decide
def test_the_interval_is_that_of_a_plain_bootstrap_over_seeds_and_cases_or_students_where_wider(apart: float) -> None:
    random = np.random.default_rng(3)
    table = random.normal(0.85, 0.04, 20) + random.normal(0, 0.001, (3, 20)) + apart * np.array([[0.0], [1], [-0.5]])
    found = sample([dice_run(seed, row) for seed, row in enumerate(table)], "test/dice")
    means = []
    for _ in range(6000):
        cases = random.integers(0, 20, 20)
        means.append(np.mean([table[seed, cases].mean() for seed in random.integers(0, 3, 3)]))
    low, high = wider(np.quantile(means, [0.025, 0.975]), table.mean(axis=1))
    assert (found.low, found.high) == (pytest.approx(low, abs=0.002), pytest.approx(high, abs=0.002))
    assert (found.over, found.cases) == ("seeds and cases", 20)
    assert found.mean == pytest.approx(table.mean())


def test_a_paired_difference_of_cases_has_the_signed_rank_p_of_their_means_over_seeds() -> None:
    random = np.random.default_rng(5)
    ability = random.normal(0.8, 0.1, 20)  # a case that is hard for one is hard for the other
    ours = [ability + 0.02 + random.normal(0, 0.01, 20) for _ in range(3)]
    theirs = [ability + random.normal(0, 0.01, 20) for _ in range(3)]
    runs = {"a": [dice_run(s, v) for s, v in enumerate(ours)], "b": [dice_run(s, v) for s, v in enumerate(theirs)]}
    found = judge(Claim("a > b", ("a", "test/dice"), ("b", "test/dice"), ""), runs, 3, "full")
    differences = np.mean(ours, axis=0) - np.mean(theirs, axis=0)
    assert found.sample.mean == pytest.approx(differences.mean())
    assert found.sample.p == pytest.approx(stats.wilcoxon(differences, zero_method="zsplit").pvalue)
    assert found.verdict == "claim holds"
    assert found.sample.high - found.sample.low < 0.03  # unpaired it would be about 0.12
    turned = judge(Claim("b > a", ("b", "test/dice"), ("a", "test/dice"), ""), runs, 3, "full")
    assert turned.verdict == "claim fails"
    assert turned.sample.low == pytest.approx(-found.sample.high, abs=1e-9)


def test_a_metric_of_the_whole_set_is_computed_anew_on_each_drawn_set() -> None:
    random = np.random.default_rng(7)
    truth = np.arange(60) % 2
    good = [np.clip(truth * 0.3 + random.uniform(0, 0.7, 60), 0, 1) for _ in range(2)]
    poor = [np.clip(truth * 0.1 + random.uniform(0, 0.9, 60), 0, 1) for _ in range(2)]
    ours, theirs = ([class_run(s, v, truth) for s, v in enumerate(runs)] for runs in (good, poor))
    found = difference(ours, theirs, "test/auroc", "test/auroc")
    drawn = []
    for _ in range(12000):
        cases = random.integers(0, 60, 60)
        each = [
            rank_auroc(good[s][cases], truth[cases]) - rank_auroc(poor[s][cases], truth[cases])
            for s in random.integers(0, 2, 2)
        ]
        drawn.append(np.mean(each))
    per_seed = np.array([rank_auroc(a, truth) - rank_auroc(b, truth) for a, b in zip(good, poor, strict=True)])
    low, high = wider(np.quantile(drawn, [0.025, 0.975]), per_seed)
    assert (found.low, found.high) == (pytest.approx(low, abs=0.012), pytest.approx(high, abs=0.012))
    expected = 2 * np.mean(np.array(drawn) <= 0)
    assert found.p == pytest.approx(expected, abs=0.02)
    assert found.test == "paired bootstrap"


@pytest.mark.parametrize(("of_seed", "of_case"), [(0.01, 0.0), (0.01, 0.02), (0.0, 0.02)])
def test_where_nothing_differs_few_claims_hold_or_fail(
    of_seed: float, of_case: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Studies of three seeds whose variants differ by chance alone, of the seed and of the case."""
    monkeypatch.setattr(verdict, "RESAMPLES", 400)
    random = np.random.default_rng(11)
    said = []
    for _ in range(200):
        ability, lean = random.normal(0.85, 0.03, 42), random.normal(0, of_case, 42)  # hard cases; cases that suit one
        ours = [ability + lean + random.normal(0, of_seed) + random.normal(0, 0.01, 42) for _ in range(3)]
        theirs = [ability + random.normal(0, of_seed) + random.normal(0, 0.01, 42) for _ in range(3)]
        runs = {"a": [dice_run(s, v) for s, v in enumerate(ours)], "b": [dice_run(s, v) for s, v in enumerate(theirs)]}
        said.append(judge(Claim("a > b", ("a", "test/dice"), ("b", "test/dice"), ""), runs, 3, "full").verdict)
    assert 1 - said.count("undecided") / 200 <= 0.08


def test_only_seeds_that_both_have_are_paired() -> None:
    runs = {"a": bare(0.8, 0.9, 0.7), "b": bare(0.7, 0.6)}
    found = judge(Claim("a > b", ("a", "val/probe"), ("b", "val/probe"), ""), runs, 3, "full")
    assert found.sample.per_seed == {0: pytest.approx(0.1), 1: pytest.approx(0.3)}
    assert found.verdict == "incomplete"


def test_equal_runs_are_undecided() -> None:
    runs = {"a": [dice_run(s, np.linspace(0.7, 0.9, 12)) for s in range(3)]}
    found = judge(Claim("a > a", ("a", "test/dice"), ("a", "test/dice"), ""), runs, 3, "full")
    assert (found.verdict, found.sample.p, found.sample.low) == ("undecided", 1.0, 0.0)


def test_runs_on_different_cases_are_judged_over_seeds() -> None:
    short = Measured(1, {"test/dice": 0.8}, {"test": {"other": {"dice/a": 0.8}}})
    found = sample([dice_run(0, np.linspace(0.7, 0.9, 12)), short], "test/dice")
    assert found.over == "seeds"


def test_the_rule_is_written_out() -> None:
    assert len(verdict.RULE) == 6
    assert all(said in " ".join(verdict.RULE) for said in ("Student's t", "bootstrap", "tolerance", "signed-rank"))
