"""A scan predicted slab by slab is the scan predicted as a whole, to the last bit."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medlight.deploy.bundle import Bundle
from medlight.deploy.runtime import Predictor
from medlight.deploy.runtime.sliding import blended, gaussian_weights, window_starts
from medlight.prepare.resample import restore
from medlight.prepare.slab_restore import SlabRestore
from medlight.scans import Volume, reorient
from tests.deploy.runtime.bundles import Fake, bands, bundle
from tests.deploy.test_sliding import sliding_window

CODES = ["".join(c) for p in itertools.permutations(("RL", "AP", "SI")) for c in itertools.product(*p)]


def whole_window(image: np.ndarray, window: list[int], model: Any, overlap: float) -> np.ndarray:
    """Every sum in memory at once; the image is no smaller than a window."""
    starts = [window_starts(n, w, overlap) for n, w in zip(image.shape[1:], window, strict=True)]
    weights = gaussian_weights(window)
    total, count = None, np.zeros(image.shape[1:], np.float32)
    for corner in itertools.product(*starts):
        place = tuple(slice(s, s + w) for s, w in zip(corner, window, strict=True))
        output = model(image[None, :, *place])[0]
        total = np.zeros((len(output), *image.shape[1:]), np.float32) if total is None else total
        total[:, *place] += output * weights
        count[place] += weights
    assert total is not None
    return total / count


def whole_label_map(predictor: Predictor, scan: Volume) -> np.ndarray:
    """Probabilities on the scan's own grid, all of them, and the largest one's label."""
    prediction = predictor.predict(scan)
    spread = restore(prediction.probabilities, prediction.affine, scan.affine, scan.shape)
    least = 0.5 if predictor.bundle.activation == "sigmoid" else 0.0
    return np.where(spread.max(axis=0) > least, spread.argmax(axis=0), 0)


@st.composite
def sizes(draw: Any) -> tuple[np.ndarray, list[int], int, float]:
    dims = draw(st.sampled_from([2, 3]))
    window = draw(st.lists(st.integers(1, 9), min_size=dims, max_size=dims))
    shape = [w + draw(st.integers(0, 17)) for w in window]
    image = np.random.default_rng(draw(st.integers(0, 999))).random((1, *shape), np.float32)
    return image, window, draw(st.integers(1, 5)), draw(st.sampled_from([0.0, 0.25, 0.5, 0.9]))


@settings(max_examples=80, deadline=None)
@given(sizes())
def test_windows(drawn: Any) -> None:
    image, window, batch, overlap = drawn
    ours = sliding_window(image, window, bands(3), overlap=overlap, batch=batch)
    assert np.array_equal(ours, whole_window(image, window, bands(3), overlap))


def test_no_slab_is_longer_than_a_window() -> None:
    image = np.random.default_rng(0).random((1, 50, 9, 9), np.float32)
    lengths = [slab.shape[1] for slab in blended(image, [8, 8, 8], bands(2))]
    assert sum(lengths) == 50
    assert max(lengths) == 8


@st.composite
def moves(draw: Any) -> tuple[tuple[int, int, int], Any, str, str, list[float] | None]:
    shape = draw(st.tuples(*[st.integers(1, 14)] * 3))
    spacing = draw(st.tuples(*[st.sampled_from([0.6, 1.0, 2.3])] * 3))
    wanted = draw(st.none() | st.lists(st.sampled_from([0.5, 1.0, 1.7, 4.0]), min_size=3, max_size=3))
    return shape, spacing, draw(st.sampled_from(CODES)), draw(st.sampled_from(CODES)), wanted


@settings(max_examples=200, deadline=None)
@given(moves(), st.sampled_from(["softmax", "sigmoid"]), st.booleans(), st.booleans(), st.integers(0, 999))
def test_label_maps_for_any_grid(drawn: Any, activation: str, coarse: bool, small: bool, seed: int) -> None:
    """small: nearly all of the scan is background for certain, and is not looked at."""
    shape, spacing, codes, prepared, wanted = drawn
    rng = np.random.default_rng(seed)
    _, affine = reorient(np.zeros(shape), np.diag([*spacing, 1.0]), codes)
    array = rng.integers(0, 100, (1, *shape)).astype(np.int16)
    if small:
        shown = tuple(slice(start := int(rng.integers(0, n)), start + int(rng.integers(0, 4))) for n in shape)
        away = np.ones(shape, bool)
        away[shown] = False
        array[0, away] = -50
    scan = Volume(array.astype(np.int16), affine)
    made = bundle(3, [4, 5, 3], preparation={"spacing": wanted, "orientation": prepared}, activation=activation)
    predictor = Predictor(made, session=Fake(bands(3, coarse)))
    found = predictor.segment(scan)
    expected = predictor.predict(scan)
    assert expected.label is not None
    assert np.array_equal(found.array, expected.label.array)
    assert np.array_equal(found.array[0], whole_label_map(predictor, scan))
    assert found.array.dtype == np.uint8
    np.testing.assert_array_equal(found.affine, scan.affine)


@settings(max_examples=60, deadline=None)
@given(moves(), st.lists(st.integers(1, 6), min_size=1, max_size=9), st.integers(0, 999))
def test_probabilities_restored_in_slabs_of_any_size(drawn: Any, lengths: list[int], seed: int) -> None:
    shape, spacing, codes, other, wanted = drawn
    _, affine = reorient(np.zeros(shape), np.diag([*spacing, 1.0]), codes)
    _, grid = reorient(np.zeros(shape), affine, other)
    grid = grid @ np.diag([*(np.array(wanted or [1, 1, 1]) / 1.0), 1.0])
    target = tuple(int(n) for n in np.random.default_rng(seed).integers(1, 16, 3))
    given_ = np.random.default_rng(seed).random((2, *shape), np.float32)
    back, row = SlabRestore(affine, shape, grid, target), 0
    found = np.full((2, *target), np.nan, np.float32)
    for length in itertools.cycle(lengths):
        for box, scores in back.add(given_[:, row : row + length]):
            for channel, score in enumerate(scores):
                found[channel][box] = score
        row += length
        if row >= shape[0]:
            break
    assert np.array_equal(found, restore(given_, affine, grid, target))


def test_a_grid_that_is_turned_is_refused() -> None:
    turned = np.eye(4)
    turned[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    with pytest.raises(ValueError, match="turned"):
        SlabRestore(turned, (9, 9, 9), np.eye(4), (9, 9, 9))


def test_clips_and_2d() -> None:
    rng = np.random.default_rng(3)
    clip: Bundle = bundle(3, [4, 5, 3], preparation={"frames": "clip", "orientation": "LPS"})
    film = Volume(rng.integers(0, 100, (7, 9, 8, 1)).astype(np.int16), np.eye(4))
    predictor = Predictor(clip, session=Fake(bands(3)))
    expected = predictor.predict(film).label
    assert expected is not None
    assert expected.array.shape == (7, 9, 8, 1)
    assert np.array_equal(predictor.segment(film).array, expected.array)
    flat = Predictor(
        bundle(3, [4, 5], spatial_dims=2, preparation={"spacing": [0.7, 1.3, 1.0]}), session=Fake(bands(3))
    )
    picture = Volume(rng.integers(0, 100, (1, 19, 8, 1)).astype(np.int16), np.eye(4))
    assert np.array_equal(flat.segment(picture).array[0], whole_label_map(flat, picture))
