"""Verdicts and affines against geometry that is known by construction."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from medlight.scans.dicom.frames import Frame, Place
from medlight.scans.dicom.geometry import TILT_MM, affine, along_normal, problems, slice_positions, verdict
from tests.data.fake_dicom import AXIAL, CORONAL, OBLIQUE, SAGITTAL, Grid, truth


def frames(grid: Grid, places=None, **changes) -> list[Frame]:
    """Frames of a grid, in random order; ``places``: where slices lie, counted in steps."""
    across, down = grid.orientation
    base = Frame(Place(Path("x")), "", grid.shape[:2], spacing=grid.spacing, along_row=across, along_column=down)
    places = range(grid.shape[2]) if places is None else places
    found = [
        replace(base, sop_uid=str(n), position=tuple(grid.position(place).tolist()), **changes)
        for n, place in enumerate(places)
    ]
    random.Random(7).shuffle(found)
    return found


directions = st.sampled_from([AXIAL, SAGITTAL, CORONAL, OBLIQUE])
grids = st.builds(
    Grid,
    shape=st.tuples(st.integers(2, 40), st.integers(2, 40), st.integers(3, 60)),
    spacing=st.tuples(st.floats(0.1, 5), st.floats(0.1, 5)),
    step=st.floats(0.2, 10),
    orientation=directions,
    origin=st.tuples(*[st.floats(-500, 500)] * 3),
)


@given(grids)
def test_regular_slices_are_ok_in_any_order_and_direction(grid):
    ordered = along_normal(frames(grid))
    assert verdict(ordered).status == "ok"
    assert [frame.sop_uid for frame in ordered] == [str(n) for n in range(grid.shape[2])]
    np.testing.assert_allclose(affine(ordered), truth(grid)[1], atol=1e-6)
    np.testing.assert_allclose(np.diff(slice_positions(ordered)), grid.step, atol=1e-6)


@given(grids, st.floats(1.5, 40), st.booleans())
def test_a_tilt_is_told_in_degrees_and_kept_in_the_affine(grid, degrees, back):
    assume(np.tan(np.radians(degrees)) * grid.step * (grid.shape[2] - 1) > TILT_MM)  # less is rounding
    tilted = replace(grid, degrees=-degrees if back else degrees)
    judged = verdict(frames(tilted, tilt_tag=0.0))
    assert judged.status == "tilt"
    assert abs(float(judged.detail.split()[0]) - degrees) < 0.06
    assert "Tilt says 0" in judged.detail
    np.testing.assert_allclose(affine(along_normal(frames(tilted))), truth(tilted)[1], atol=1e-6)


@given(grids.filter(lambda g: g.shape[2] >= 7), st.data())
def test_a_gap_is_told_with_its_slices_and_millimetres(grid, data):
    slices = grid.shape[2]
    start = data.draw(st.integers(3, slices - 4))
    count = data.draw(st.integers(1, slices - 3 - start))
    left = [n for n in range(slices) if not start <= n < start + count]
    judged = verdict(frames(grid, left))
    assert judged.status == "gap"
    assert f"between slices {start} and {start + 1}," in judged.detail
    assert judged.detail.startswith(f"{(count + 1) * grid.step:.4g} mm")
    assert f"{count} slice" in judged.detail


@given(grids.filter(lambda g: g.shape[2] >= 6), st.floats(0.2, 0.45), st.data())
def test_a_slice_off_its_place_is_uneven(grid, off, data):
    moved = data.draw(st.integers(1, grid.shape[2] - 2))
    judged = verdict(frames(grid, [n + off * (n == moved) for n in range(grid.shape[2])]))
    assert judged.status == "uneven"
    assert "mm" in judged.detail


@given(grids)
def test_rounded_positions_are_ok(grid):
    rounded = [replace(f, position=tuple(round(part, 3) for part in f.position)) for f in frames(grid)]
    assert verdict(rounded).status == "ok"


def test_a_slice_beside_the_others_is_named():
    grid = Grid(shape=(10, 12, 8))
    shifted = [
        replace(f, position=(f.position[0] + 3, *f.position[1:])) if f.sop_uid == "4" else f for f in frames(grid)
    ]
    judged = verdict(shifted)
    assert (judged.status, judged.detail) == ("uneven", "slice 5 of 8 lies 3 mm beside the others")


def test_a_place_taken_twice_is_named():
    judged = verdict(frames(Grid(), [0, 1, 2, 2, 3, 4]))
    assert (judged.status, judged.detail) == ("duplicate", "slices 3 and 4 of 6 lie at one place")


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ({"thickness": 2.5}, "ok"),
        ({"interval": -2.5}, "ok"),
        ({"thickness": 1.0}, "not-a-volume"),
        ({}, "not-a-volume"),
    ],
)
def test_two_slices_need_something_that_vouches_for_their_distance(said, status):
    assert verdict(frames(Grid(), [0, 1], **said)).status == status


def test_what_is_no_volume():
    grid = Grid()
    assert verdict(frames(grid, [0])).detail == "a single slice"
    assert verdict(frames(grid, [0, 0, 0])).detail == "3 slices at one place"
    lost = [replace(f, position=None) if f.sop_uid == "1" else f for f in frames(grid)]
    assert verdict(lost).detail.startswith("1 of 6 slices with no place")
    crooked = [replace(f, along_row=(1.0, 0.5, 0.0)) for f in frames(grid)]
    assert verdict(crooked).status == "not-a-volume"
    assert verdict([replace(f, spacing=None) for f in frames(grid)]).status == "not-a-volume"


def test_all_that_is_wrong_is_found():
    left = [0, 1, 2, 4, 5, 6]
    found = problems(frames(replace(Grid(), degrees=10.0), left))
    assert [judged.status for judged in found] == ["gap", "tilt"]


def test_thin_slices_hide_no_gap_behind_the_tolerance():
    grid = Grid(step=0.06, shape=(10, 12, 20))
    assert verdict(frames(grid)).status == "ok"
    assert verdict(frames(grid, [n for n in range(20) if n != 9])).status == "gap"


def test_one_slice_steps_by_its_thickness_along_the_normal():
    single = frames(Grid(shape=(10, 12, 1), orientation=OBLIQUE), thickness=4.0)
    expected = truth(Grid(shape=(10, 12, 1), orientation=OBLIQUE, step=4.0))[1]
    np.testing.assert_allclose(affine(single), expected, atol=1e-9)


def test_a_picture_with_no_place_lies_at_the_origin():
    picture = Frame(Place(Path("x")), "", (20, 16), spacing=(0.2, 0.1))
    np.testing.assert_allclose(affine([picture]), np.diag([-0.1, -0.2, 1, 1]))
