"""Windows against the pseudo-code of PS3.3 C.11.2, written out value by value."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medlight.errors import UsageError
from medlight.scans.window import PRESETS, apply_lut, apply_window, window

VALUES = np.array([-2000.0, -160.5, -160, -0.5, 0, 0.25, 40, 239, 240, 240.5, 4000])


def _standard(x: float, c: float, w: float, function: str) -> float:
    """The standard's own lines, ymin 0 and ymax 1."""
    if function == "SIGMOID":
        return 1 / (1 + math.exp(-4 * (x - c) / w))
    if function == "LINEAR_EXACT":
        if x <= c - w / 2:
            return 0.0
        return 1.0 if x > c + w / 2 else (x - c) / w + 0.5
    if x <= c - 0.5 - (w - 1) / 2:
        return 0.0
    return 1.0 if x > c - 0.5 + (w - 1) / 2 else (x - (c - 0.5)) / (w - 1) + 0.5


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@given(centre=st.floats(-1500, 1500), width=st.floats(1, 4000))
def test_windows_are_the_standards(function, centre, width):
    expected = [_standard(x, centre, width, function) for x in VALUES if abs(x - centre) / width < 100]
    got = apply_window(VALUES, centre, width, function)
    got = got[np.abs(VALUES - centre) / width < 100]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=2e-6)


def test_the_standards_worked_examples():
    # C.11.2.1.2.1: c=2048, w=4096 maps 0 to 0 and 4095 to the top; c=2048, w=1 is a threshold at 2048
    assert apply_window(np.array([0, 4095]), 2048, 4096).tolist() == [0, 1]
    assert apply_window(np.array([2047, 2048]), 2048, 1).tolist() == [0, 1]
    # C.11.2.1.3.2: c=2048, w=4096 in LINEAR_EXACT puts 2048 in the very middle
    assert apply_window(np.array([2048]), 2048, 4096, "LINEAR_EXACT").tolist() == [0.5]


def test_values_that_are_no_numbers_and_impossible_widths():
    assert apply_window(np.array([np.nan, -np.inf, np.inf]), 0, 10).tolist() == [0, 0, 1]
    for width, function in ((0.5, "LINEAR"), (0, "LINEAR_EXACT"), (-1, "SIGMOID"), (math.nan, "LINEAR")):
        with pytest.raises(UsageError, match="width"):
            apply_window(VALUES, 0, width, function)


def test_presets_and_windows_by_name():
    assert {"lung", "bone", "brain", "soft-tissue"} <= set(PRESETS)
    assert window("lung") == PRESETS["lung"]
    assert (window("40/400").centre, window("-600/1500").width) == (40, 1500)
    for wrong in ("lungs", "40", "40/0", "a/b", "40/400/1"):
        with pytest.raises(UsageError):
            window(wrong)


def test_a_voi_lut_takes_its_ends_for_what_is_outside():
    table = np.array([0, 10, 255])
    assert apply_lut(np.array([-5, 100, 101.2, 102, 999]), 100, table, 8).tolist() == [
        0,
        0,
        np.float32(10) / 255,
        1,
        1,
    ]
