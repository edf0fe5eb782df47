"""Planes of pixels onto grids that run any way."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from medlight.scans.regions import Grid, Plane, seat

ORDERS = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]


def oblique(rng: np.random.Generator, spacing: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.random(random_state=rng.integers(2**31)).as_matrix() * spacing
    affine[:3, 3] = rng.uniform(-200, 200, 3)
    return affine


def plane_of(affine: np.ndarray, k: int, rows: int, columns: int) -> Plane:
    """A slice of a grid whose first axis runs along columns and second along rows, as DICOM's do."""
    corner = affine[:3, 3] + k * affine[:3, 2]
    return Plane((rows, columns), corner, affine[:3, 0], affine[:3, 1])


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(ORDERS), st.tuples(*[st.booleans()] * 3))
def test_pixels_land_where_they_lie_whichever_way_the_grid_runs(
    seed: int, order: tuple[int, ...], flips: tuple[bool, ...]
) -> None:
    rng = np.random.default_rng(seed)
    columns, rows, slices = shape = tuple(int(n) for n in rng.integers(1, 9, 3))
    affine = oblique(rng, rng.uniform(0.4, 3, 3))
    drawn = rng.random(shape) < 0.5
    turned = drawn.transpose(order)
    flip = np.eye(4)
    for axis, flipped in enumerate(flips):
        if flipped:
            turned = np.flip(turned, axis)
            flip[axis, axis], flip[axis, 3] = -1, turned.shape[axis] - 1
    permutation = np.eye(4)[[*np.argsort(order), 3]]
    grid = Grid(turned.shape, affine @ permutation @ flip)
    found = np.zeros(turned.shape, bool)
    for k in range(slices):
        at = seat(plane_of(affine, k, rows, columns), grid)
        assert at.off < 1e-6
        assert not at.outside
        where, values = at.take(drawn[:, :, k].T, grid.shape)
        found[where] = values
    assert np.array_equal(found, turned)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.tuples(*[st.integers(-6, 6)] * 3))
def test_a_larger_plane_is_cut_and_one_beside_is_outside(seed: int, shift: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(seed)
    affine = oblique(rng, np.array([0.7, 0.7, 2.0]))
    grid = Grid((5, 4, 3), affine)
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ shift
    pixels = rng.random((6, 5)) < 0.5  # 6 rows, 5 columns
    at = seat(plane_of(moved, 0, 6, 5), grid)
    whole = np.zeros((30, 30, 30), bool)
    whole[10 + shift[0] : 15 + shift[0], 10 + shift[1] : 16 + shift[1], 10 + shift[2]] = pixels.T
    expected = whole[10:15, 10:14, 10:13]
    found = np.zeros(grid.shape, bool)
    if not at.outside:
        where, values = at.take(pixels, grid.shape)
        found[where] = values
    assert np.array_equal(found, expected)


def test_planes_between_voxels_are_off_the_grid() -> None:
    affine = np.diag([-0.8, -0.8, 2.5, 1.0])
    grid = Grid((64, 64, 20), affine)
    good = plane_of(affine, 3, 64, 64)
    between = Plane(good.shape, good.corner + np.array([0, 0, 1.0]), good.column_step, good.row_step)
    coarser = Plane(good.shape, good.corner, good.column_step * 1.01, good.row_step)
    turn = Rotation.from_euler("z", 1, degrees=True).as_matrix()
    turned = Plane(good.shape, good.corner, turn @ good.column_step, turn @ good.row_step)
    tilted = Plane(
        good.shape, good.corner, good.column_step, Rotation.from_euler("x", 3, degrees=True).apply(good.row_step)
    )
    for plane in (between, coarser, turned, tilted):
        assert not seat(plane, grid).fits
    rounded = Plane(good.shape, np.round(good.corner, 2) + np.array([0.01, 0, 0.01]), good.column_step, good.row_step)
    assert seat(rounded, grid).fits
