"""The statistics against values worked out by other means."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medlight.compare import stats

NUMBERS = st.floats(-5, 5, allow_nan=False, width=32)


def enumerated(differences: list[float]) -> float:
    """Exact two-sided p: every sign change of the ranks (zeros split in half), counted one by one."""
    size = [abs(d) for d in differences]
    ranks = [sum(s < x for s in size) + (sum(s == x for s in size) + 1) / 2 for x in size]
    halves = sum(r for r, d in zip(ranks, differences, strict=True) if d == 0) / 2
    seen = sum(r for r, d in zip(ranks, differences, strict=True) if d > 0) + halves
    moving = [r for r, d in zip(ranks, differences, strict=True) if d != 0]
    all_sums = [
        sum(r for r, plus in zip(moving, signs, strict=True) if plus) + halves
        for signs in itertools.product([False, True], repeat=len(moving))
    ]
    below = sum(s <= seen + 1e-9 for s in all_sums) / len(all_sums)
    above = sum(s >= seen - 1e-9 for s in all_sums) / len(all_sums)
    return min(1.0, 2 * min(below, above))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=6, max_size=10))
def test_signed_rank_equals_an_enumeration_of_all_sign_changes(differences):
    assert stats.signed_rank(differences) == pytest.approx(enumerated(differences), abs=1e-9)


def test_signed_rank_of_a_textbook_table():
    # Six pairs, all of one sign: 2 of the 64 sign patterns are as far out.
    assert stats.signed_rank([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) == pytest.approx(2 / 64)


def test_no_p_below_six_pairs():
    assert stats.signed_rank([1, 2, 3, 4, 5]) is None
    assert stats.paired([1, 2, 3, 4, 5, math.nan], [0] * 6).p is None


def test_equal_runs_do_not_differ():
    result = stats.paired([0.8] * 9, [0.8] * 9)
    assert result.p == 1.0
    assert result.difference == stats.Estimate(0, 0, 0, 9)


def test_rounding_is_no_difference():
    assert stats.signed_rank([1e-16, -1e-16, 1e-17, 0, 0, 1e-16, 1e-16]) == 1.0


@settings(max_examples=30, deadline=None)
@given(
    st.lists(NUMBERS, min_size=stats.MINIMUM_CASES, max_size=30), st.sampled_from([0.25, 0.5, 4.0]), st.integers(1, 5)
)
def test_interval_stays_within_the_values_and_scales_with_them(values, factor, seed):
    plain = stats.estimate(values, seed)
    scaled = stats.estimate(np.array(values) * factor, seed)
    assert plain.n == len(values)
    assert plain.mean == pytest.approx(sum(values) / len(values), abs=1e-6)
    assert min(values) - 1e-9 <= plain.low <= plain.high <= max(values) + 1e-9
    assert (scaled.low, scaled.high) == pytest.approx((plain.low * factor, plain.high * factor), abs=1e-9)


def test_interval_is_repeatable_and_close_to_the_normal_one():
    values = np.random.default_rng(3).normal(0.8, 0.1, 400)
    first, second = stats.estimate(values, seed=7), stats.estimate(values, seed=7)
    assert first == second
    half = 1.959964 * values.std(ddof=1) / math.sqrt(400)
    assert first.low == pytest.approx(values.mean() - half, abs=0.001)
    assert first.high == pytest.approx(values.mean() + half, abs=0.001)


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for index in range(120):
        found = stats.estimate(rng.normal(0, 1, 25), seed=index)
        hits += found.low <= 0 <= found.high
    assert hits >= 105  # 95 % of 120 is 114; four standard deviations below is 105


def test_values_that_are_not_finite_are_left_out():
    assert stats.estimate([1.0, math.nan, math.inf, 3.0]).n == 2
    assert stats.estimate([1.0, math.nan]).n == 1
    assert math.isnan(stats.estimate([1.0, 2.0, 3.0, 4.0, 5.0, math.nan]).low)
    assert stats.estimate([]).n == 0


def test_fewer_than_six_cases_have_a_mean_and_no_interval():
    five = stats.estimate([1, 2, 3, 4, 5])
    assert (five.mean, five.n) == (3, 5)
    assert math.isnan(five.low)
    assert math.isnan(five.high)
    assert math.isnan(stats.estimate([0.5] * 5).low)
    assert stats.estimate([0.5] * 6) == stats.Estimate(0.5, 0.5, 0.5, 6)
    assert math.isfinite(stats.estimate([1, 2, 3, 4, 5, 6]).low)


def test_pairs_with_a_missing_side_are_left_out():
    result = stats.paired([1, 2, math.nan, 4, 5, 6, 7, 8], [0, 1, 2, math.nan, 4, 5, 6, 7])
    assert result.difference.n == 6
    assert result.difference.mean == pytest.approx(1)


def test_holm_by_hand():
    # 0.01 x 4, 0.02 x 3, 0.03 x 2, 0.04 x 1 pulled up to the one before.
    assert stats.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert stats.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert stats.holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_order_and_never_lowers(p_values):
    adjusted = stats.holm(p_values)
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert np.all(np.diff(np.array(adjusted)[order]) >= 0)
    assert min(adjusted) == pytest.approx(min(1, len(p_values) * min(p_values)))
