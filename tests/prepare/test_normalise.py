"""Normalisers: a clip and an affine map from the statistics of a scan."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from medlight.errors import UsageError
from medlight.prepare import NamedWindow, Percentile, Window, ZScore, normaliser_from, statistics
from medlight.prepare.statistics import PERCENTILES

SCANS = arrays.arrays(np.float32, st.tuples(*[st.integers(1, 6)] * 3), elements=st.floats(-2000, 3000, width=16))


@given(SCANS)
def test_statistics_are_numpys(scan):
    stats = json.loads(json.dumps(statistics(scan)))
    for values, seen in ((scan, stats), (scan[scan != 0], stats["nonzero"])):
        assert seen["count"] == values.size
        if values.size:
            expected = np.percentile(values.astype(np.float64), PERCENTILES)
            np.testing.assert_allclose([seen["percentiles"][f"{p:g}"] for p in PERCENTILES], expected, atol=1e-3)
            assert (seen["min"], seen["max"]) == (values.min(), values.max())
            np.testing.assert_allclose(seen["mean"], values.mean(dtype=np.float64), atol=1e-6)
            np.testing.assert_allclose(seen["std"], values.std(dtype=np.float64), atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(SCANS)
def test_statistics_of_a_big_scan_are_found_in_blocks(scan):
    whole = statistics(scan)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["medlight.prepare.statistics"], "BLOCK", 50)  # the package has a function of the name
        parts = statistics(scan)
    for one, other in ((whole, parts), (whole["nonzero"], parts["nonzero"])):
        assert [one[key] for key in ("count", "min", "max")] == [other[key] for key in ("count", "min", "max")]
        assert one["percentiles"] == other["percentiles"]
        assert [one[key] for key in ("mean", "std")] == pytest.approx([other[key] for key in ("mean", "std")], abs=1e-9)


@given(SCANS)
def test_each_normaliser_does_what_it_says(scan):
    stats = statistics(scan)
    scored = ZScore().scaling(stats).apply(scan)
    assert scored.dtype == np.float32
    assert abs(scored.mean(dtype=np.float64)) < 1e-2
    if scan.std(dtype=np.float64) > 1e-2:
        assert abs(scored.std(dtype=np.float64) - 1) < 1e-2
    window = Window(-100, 300).scaling().apply(scan)
    np.testing.assert_allclose(window, (np.clip(scan, -100, 300) + 100) / 400, atol=1e-6)
    share = Percentile(1, 99).scaling(stats).apply(scan)
    assert share.min() >= 0
    assert share.max() <= 1 + 1e-5
    for normaliser in (ZScore(), ZScore(nonzero=True), Window(0, 1), Percentile(0, 100)):
        assert np.isfinite(normaliser.scaling(stats).apply(scan)).all()


def test_zscore_of_what_is_not_zero():
    scan = np.zeros((4, 4, 4), np.float32)
    scan[1:3] = np.random.default_rng(0).normal(500, 50, (2, 4, 4))
    scored = ZScore(nonzero=True).scaling(statistics(scan)).apply(scan)
    assert abs(scored[1:3].mean()) < 1e-4
    assert abs(scored[1:3].std() - 1) < 1e-4


def test_specs_go_there_and_back():
    for normaliser in (ZScore(), ZScore(nonzero=True), Window(-160.0, 240.0), Percentile(2, 98)):
        spec = json.loads(json.dumps(normaliser.to_dict()))
        assert normaliser_from(spec) == normaliser
    assert [n.per_voxel for n in (ZScore(), Window(0, 1), Percentile())] == [False, True, False]


def test_wrong_arguments_are_refused_in_one_line():
    with pytest.raises(UsageError, match="low 3 must lie below high 1"):
        Window(3, 1)
    with pytest.raises(UsageError, match=r"7 is not kept; choose one of 0, 0\.5"):
        Percentile(7, 99)
    with pytest.raises(UsageError, match="below"):
        Percentile(99, 1)
    with pytest.raises(UsageError, match="no normaliser"):
        normaliser_from({"class_path": "medlight.prepare.Preparation"})
    with pytest.raises(UsageError, match="did you mean 'ZScore'"):
        normaliser_from({"class_path": "medlight.prepare.Zscore"})


@pytest.mark.parametrize(("name", "low", "high"), [("lung", -1350, 150), ("brain", 0, 80), ("40/400", -160, 240)])
def test_a_named_window_is_what_dicom_defines(name: str, low: float, high: float) -> None:
    normaliser = NamedWindow(name)
    scan = np.linspace(-2000, 2000, 5001, dtype=np.float32)
    expected = sitk.GetArrayFromImage(sitk.IntensityWindowing(sitk.GetImageFromArray(scan[None]), low, high, 0, 1))[0]
    np.testing.assert_allclose(normaliser.scaling().apply(scan), expected, atol=1e-6)
    assert normaliser_from(normaliser.to_dict()) == normaliser
    with pytest.raises(UsageError, match="is no window"):
        NamedWindow("lungs")
