from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice

from medlight.tasks.metrics import case_scores, mean, surface_distances


def one_hot(labels: np.ndarray, classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.as_tensor(labels).long(), classes).movedim(-1, 0)[None]


def random_map(draws: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(draws.normal(size=shape), 1.5)
    return np.digitize(smooth, np.quantile(smooth, [0.5, 0.8])).astype(np.int64)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    shape=st.one_of(st.tuples(*[st.integers(6, 18)] * 3), st.tuples(*[st.integers(8, 30)] * 2)),
    spacing=st.lists(st.floats(0.3, 5), min_size=3, max_size=3),
    tolerance=st.floats(0.1, 5),
)
def test_scores_equal_monais(seed, shape, spacing, tolerance):
    draws = np.random.default_rng(seed)
    prediction, truth = random_map(draws, shape), random_map(draws, shape)
    spacing = spacing[: len(shape)]
    ours = case_scores(prediction, truth, [1, 2], spacing, tolerance)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        y_pred, y = one_hot(prediction, 3), one_hot(truth, 3)
        dice = compute_dice(y_pred, y, include_background=False)[0]
        hd95 = compute_hausdorff_distance(y_pred, y, percentile=95, spacing=spacing)[0]
        nsd = compute_surface_dice(y_pred, y, [tolerance] * 2, spacing=spacing)[0]
    for value in (1, 2):
        assert ours[value] == pytest.approx([float(score[value - 1]) for score in (dice, hd95, nsd)], rel=1e-5)


def test_absent_in_both_does_not_count():
    scores = case_scores(np.ones((4, 4, 4), int), np.ones((4, 4, 4), int), [1, 2], [1, 1, 1], 1.0)
    assert scores[1] == (1.0, 0.0, 1.0)
    assert all(math.isnan(score) for score in scores[2])


@pytest.mark.parametrize("swap", [False, True])
def test_absent_in_one_only_is_the_worst_there_is(swap):
    full, empty = np.zeros((4, 6, 12), int), np.zeros((4, 6, 12), int)
    full[1, 2, 3] = 1
    pair = (empty, full) if swap else (full, empty)
    assert case_scores(*pair, [1], [3.0, 1.0, 0.5], 1.0)[1] == (0.0, math.sqrt(12**2 + 6**2 + 6**2), 0.0)


def test_hand_computed_shift():
    truth = np.zeros((10, 10), int)
    truth[2:6, 3:7] = 1
    prediction = np.roll(truth, 2, axis=0)
    dice, hd95, nsd = case_scores(prediction, truth, [1], [1.5, 1.0], 1.0)[1]
    assert dice == 0.5
    # Either square has 12 surface pixels; to the other's surface 4 have 0 mm, 2 have 1, 2 have 1.5 and 4 have 3.
    assert hd95 == pytest.approx(3.0)
    assert nsd == pytest.approx(6 / 12)


def test_distances_are_symmetric():
    a, b = np.zeros((8, 8, 8), bool), np.zeros((8, 8, 8), bool)
    a[2:4, 2:4, 2:4], b[3:6, 2:4, 2:4] = True, True
    there, back = surface_distances(a, b, [1, 1, 1])
    again = surface_distances(b, a, [1, 1, 1])
    assert np.array_equal(there, again[1])
    assert np.array_equal(back, again[0])


def test_mean_leaves_nan_out():
    assert mean([1.0, math.nan, 0.0]) == 0.5
    assert math.isnan(mean([math.nan]))
    assert math.isnan(mean([]))


def test_real_case_is_quick(data_root):
    import time

    import nibabel as nib

    file = sorted((data_root / "hippocampus" / "labels").glob("*.nii*"))[0]
    truth = np.asarray(nib.load(file).dataobj).astype(int)
    prediction = np.roll(truth, 1, axis=2)
    case_scores(prediction, truth, [1, 2], [1, 1, 1], 1.0)
    begin = time.process_time()
    for _ in range(5):
        case_scores(prediction, truth, [1, 2], [1, 1, 1], 1.0)
    assert (time.process_time() - begin) / 5 < 0.06
