"""Where patches lie, and what is cut out."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.inferers import sliding_window_inference

from medlight.data import Patch
from medlight.data.patches import Window, cut, place
from medlight.errors import UsageError

sizes = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
lows = st.tuples(st.integers(-9, 9), st.integers(-9, 9), st.integers(-9, 9))


@given(sizes, sizes, st.integers(0, 1000), st.booleans())
def test_a_patch_holds_its_centre_and_stays_in_the_image_where_it_fits(size, shape, seed, centred):
    rng = np.random.default_rng(seed)
    around = np.array([rng.integers(n) for n in shape]) if centred else None
    window = place(size, shape, rng, around)
    for axis in range(3):
        low, high = window.low[axis], window.low[axis] + size[axis]
        if size[axis] <= shape[axis]:
            assert low >= 0
            assert high <= shape[axis]
        else:
            assert abs((0 - low) - (high - shape[axis])) <= 1  # the image is in the middle
        if around is not None:
            assert low <= around[axis] < high


def test_patches_anywhere_reach_every_place_alike():
    rng = np.random.default_rng(0)
    lows = [place((4, 4, 4), (8, 6, 4), rng, None).low for _ in range(4000)]
    counts = np.unique(lows, axis=0, return_counts=True)[1]
    assert len(counts) == 5 * 3
    assert counts.min() > 0.75 * 4000 / 15


def test_a_small_image_lies_where_sliding_window_inference_puts_it():
    image = torch.rand(1, 1, 5, 4, 7)
    seen = []
    sliding_window_inference(image, (8, 7, 8), 1, lambda x: seen.append(x) or x)
    window = place((8, 7, 8), (5, 4, 7), np.random.default_rng(0), None)
    assert torch.equal(cut(image[0], window), seen[0][0])


@given(sizes, lows, sizes, st.floats(-3, 3))
def test_cut_equals_padding_and_slicing(shape, low, size, value):
    low = tuple(max(min(a, n - 1), 1 - s) for a, n, s in zip(low, shape, size, strict=True))  # they overlap
    array = torch.rand(2, *shape)
    padded = np.pad(array.numpy(), [(0, 0), *[(10, 20)] * 3], constant_values=np.float32(value))
    i, j, k = ((slice(10 + a, 10 + a + s)) for a, s in zip(low, size, strict=True))
    assert np.array_equal(cut(array, Window(low, size), value).numpy(), padded[:, i, j, k])


@given(lows, sizes, sizes)
def test_the_inside_of_a_window_is_within_the_image(low, size, shape):
    inside = Window(low, size).inside(shape)
    for a, s, n in zip(inside.low, inside.size, shape, strict=True):
        assert a >= 0
        assert s >= 1
        assert a + s <= n


@pytest.mark.parametrize(
    ("size", "foreground"), [([3], 0.3), ([3, 3, 3, 3], 0.3), ([0, 3, 3], 0.3), ([3, 3], 1.2), ([3, 3], -0.1)]
)
def test_an_impossible_patch_is_refused(size, foreground):
    with pytest.raises(UsageError, match=r"data\.patch"):
        Patch(size, foreground)
