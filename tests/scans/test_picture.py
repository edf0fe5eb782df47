"""Pictures: geometry, colours and what must not happen to them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageColor

from medlight.prepare.case import Label
from medlight.scans.picture import PALETTE, colours_of, panel

ORANGE = np.array(ImageColor.getrgb(PALETTE[0]))


def box(shape: tuple[int, ...], *cuts: slice) -> np.ndarray:
    label = np.zeros(shape, np.uint8)
    label[cuts] = 1
    return label


def coloured(picture: np.ndarray, colour: np.ndarray = ORANGE) -> np.ndarray:
    return (np.abs(picture.astype(int) - colour).max(-1) <= 2).nonzero()


def test_the_patients_right_is_on_the_left_and_anterior_is_above() -> None:
    shape = (20, 20, 1)
    label = box(shape, slice(15, 19), slice(14, 19), slice(None))  # high i: right; high j: anterior
    picture = panel(np.zeros(shape), (1, 1, 1), [(label, "outline")])
    image_part = picture[:384]
    rows, columns = coloured(image_part)
    assert columns.max() < image_part.shape[1] / 2
    assert rows.max() < image_part.shape[0] / 2


def test_lines_of_text_lie_below_and_none_is_wider_than_the_picture() -> None:
    shape = (20, 20, 1)
    bare = panel(np.zeros(shape), (1, 1, 1))
    told = panel(np.zeros(shape), (1, 1, 1), lines=["a", "b" * 500])
    assert told.shape[1] == bare.shape[1]
    np.testing.assert_array_equal(told[: len(bare)], bare)
    strip = told[len(bare) :]
    one, other = (strip[rows].max(axis=(0, 2)).nonzero()[0] for rows in (slice(0, 24), slice(24, None)))
    assert 0 < one.max() < 20
    assert 0.9 * told.shape[1] < other.max() < told.shape[1] - 3


def test_panels_are_isotropic_in_millimetres() -> None:
    shape = (40, 40, 8)  # 40 x 40 x 40 mm
    label = box(shape, slice(10, 30), slice(10, 30), slice(2, 6))  # 20 mm cube
    picture = panel(np.zeros(shape), (1, 1, 5), [(label, "outline")])
    third = picture.shape[1] // 3
    for part in (picture[:384, :third], picture[:384, third : 2 * third], picture[:384, 2 * third :]):
        rows, columns = coloured(part)
        assert np.ptp(rows) == pytest.approx(np.ptp(columns), abs=3)


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60)),
    st.tuples(st.floats(0.3, 6), st.floats(0.3, 6), st.floats(0.3, 6)),
)
def test_any_shape_gives_a_picture_of_a_sensible_size(shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    image = np.random.default_rng(0).normal(size=shape)
    picture = panel(image, spacing, [(image > 1, "fill"), (image > 0.5, "outline")])
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    assert 300 <= picture.shape[0] <= 1400
    assert picture.shape[1] <= 3 * 1024 + 16


def test_a_constant_or_broken_image_still_draws() -> None:
    image = np.full((10, 10, 10), 7.0)
    image[0, 0, 0] = np.nan
    assert panel(image, (1, 1, 1)).shape[0] >= 300


def test_only_labels_are_drawn_and_background_never() -> None:
    image = np.zeros((16, 16, 16))
    nothing = panel(image, (1, 1, 1), [(np.zeros(image.shape, int), "fill")], [Label(0, "background", "#ff0000")])
    assert nothing.shape == panel(image, (1, 1, 1)).shape  # no legend either


def test_schema_colours_win_and_further_labels_get_other_ones() -> None:
    labels = [Label(0, "background"), Label(1, "a", "#010203"), *(Label(v, str(v)) for v in range(2, 20))]
    colours = colours_of(range(1, 25), labels)
    assert colours[1] == (1, 2, 3)
    assert len(set(colours.values())) == 24


def test_a_colour_belongs_to_a_label_whatever_else_is_in_the_picture() -> None:
    labels = [Label(v, str(v)) for v in range(4)]
    assert colours_of([3], labels)[3] == colours_of([1, 2, 3], labels)[3]


def test_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="same shape"):
        panel(np.zeros((4, 4, 4)), (1, 1, 1), [(np.zeros((4, 4, 5), int), "fill")])


def test_drawing_imports_no_torch() -> None:
    code = "import sys, medlight.scans.picture; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
