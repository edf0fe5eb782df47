"""Polygons to pixels, against Matplotlib and against areas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Outline

from medlight.scans.polygon import fill


def centres(shape: tuple[int, int]) -> np.ndarray:
    return np.argwhere(np.ones(shape, bool)).astype(float)


def by_matplotlib(corners: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return Outline(np.vstack([corners, corners[:1]])).contains_points(centres(shape)).reshape(shape)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(3, 12), st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_any_polygon_fills_as_matplotlib_does(seed: int, count: int, shape: tuple[int, int]) -> None:
    """Even-odd for star-shaped and crossing outlines alike; random corners lie on no centre."""
    corners = np.random.default_rng(seed).uniform(-5, 45, (count, 2))
    assert np.array_equal(fill([corners], shape), by_matplotlib(corners, shape))


def test_areas_that_share_borders_cover_each_pixel_once() -> None:
    left = np.array([(0, 0), (4, 0), (4, 6), (0, 6)], float)
    right = left + np.array([4, 0])
    assert fill([left], (8, 6)).sum() == 24
    assert (fill([left], (8, 6)).astype(int) + fill([right], (8, 6)) == 1).all()


def test_a_polygon_inside_another_is_a_hole() -> None:
    outer = np.array([(1, 1), (9, 1), (9, 9), (1, 9)], float)
    inner = np.array([(3.5, 3.5), (6.5, 3.5), (6.5, 6.5), (3.5, 6.5)])
    filled = fill([outer, inner], (12, 12))
    assert filled.sum() == 64 - 9
    assert not filled[4:7, 4:7].any()


@pytest.mark.parametrize("turned", [False, True])
def test_a_keyhole_leaves_no_trace(turned: bool) -> None:
    outer = [(1, 1), (9, 1), (9, 9), (1, 9), (1, 5)]
    inner = [(3, 5), (3, 3), (7, 3), (7, 7), (3, 7), (3, 5)]
    corners = np.array([*outer, *(inner[::-1] if turned else inner), (1, 5)], float)  # the way in is the way out
    square, hole = np.zeros((12, 12), bool), np.zeros((12, 12), bool)
    square[1:9, 1:9] = hole[3:7, 3:7] = True
    assert np.array_equal(fill([corners], (12, 12)), square & ~hole)


def test_a_polygon_beside_or_without_area_fills_nothing() -> None:
    assert not fill([np.array([(20, 20), (30, 20), (25, 30)], float)], (10, 10)).any()
    assert not fill([np.array([(-9, 2), (-2, 2), (-2, 8)], float)], (10, 10)).any()
    assert not fill([np.array([(2, 2), (8, 2), (5, 2)], float)], (10, 10)).any()


def test_one_that_covers_all_fills_all() -> None:
    assert fill([np.array([(-50, -50), (99, -50), (99, 99), (-50, 99)], float)], (7, 5)).all()
