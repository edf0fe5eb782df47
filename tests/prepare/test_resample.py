"""Resampling, against SimpleITK and scipy, and there and back again."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medlight.prepare import interpolate, restore, to_grid, to_spacing
from medlight.prepare.resample import spaced_grid, thick_axis
from tests.data import fake

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SPACINGS = st.tuples(*[st.floats(0.6, 2.0)] * 3)


def itk(array, affine):
    """A SimpleITK image of an ``(I, J, K)`` array."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    matrix = LPS @ affine
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((matrix[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(matrix[:3, 3].tolist())
    return image


def itk_resample(array, affine, grid, shape, how, fill=0.0):
    frame = itk(np.zeros(shape, np.uint8), grid)
    moved = sitk.Resample(itk(array, affine), frame, sitk.Transform(), how, fill)
    return sitk.GetArrayFromImage(moved).transpose(2, 1, 0)


def dice(one, other):
    return 2 * (one & other).sum() / max(1, one.sum() + other.sum())


def smooth(shape, seed=0):
    noise = np.random.default_rng(seed).normal(0, 1, shape)
    return (1000 * ndimage.gaussian_filter(noise, 1.5)).astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(SPACINGS, SPACINGS, st.sampled_from(["RAS", "LPS", "PIR", "SRA"]))
def test_the_corner_keeps_its_place_and_the_far_one_nearly(start, end, codes):
    affine = fake.affine(start, codes, (10, -20, 30))
    shape = (20, 17, 12)
    grid, new = spaced_grid(affine, shape, end)
    np.testing.assert_allclose(grid[:3, 3], affine[:3, 3])
    np.testing.assert_allclose(np.linalg.norm(grid[:3, :3], axis=0), end)
    for n, s, m, t in zip(shape, start, new, end, strict=True):
        assert abs((n - 1) * s - (m - 1) * t) <= t / 2 + 2e-3
    assert nib.aff2axcodes(grid) == nib.aff2axcodes(affine)


@settings(max_examples=15, deadline=None)
@given(SPACINGS, SPACINGS, st.integers(0, 99))
def test_images_equal_itks_b_spline(start, end, seed):
    affine = fake.affine(start, "LAS", (3, -7, 11))
    array = smooth((18, 20, 16), seed)
    moved, grid = to_spacing(array, affine, end, "image", threshold=10)
    oracle = itk_resample(array, affine, grid, moved.shape, sitk.sitkBSpline)
    oracle = oracle.clip(array.min(), array.max())
    inner = tuple(slice(1, max(2, int((n - 2) * s / t))) for n, s, t in zip(array.shape, start, end, strict=True))
    np.testing.assert_allclose(moved[inner], oracle[inner], atol=2e-2)  # of values of about 100
    assert moved.dtype == np.float32


@settings(max_examples=15, deadline=None)
@given(SPACINGS, st.integers(0, 99))
def test_turned_grids_equal_itk(spacing, seed):
    rng = np.random.default_rng(seed)
    affine = fake.affine((1.0, 1.2, 1.5), "RAS", (3, -7, 11))
    grid = fake.affine(spacing, "LPS", affine[:3, 3] + [20, 20, 1])
    grid[:3, :3] = nib.eulerangles.euler2mat(*rng.uniform(-0.4, 0.4, 3)) @ grid[:3, :3]
    array = smooth((18, 20, 16), seed)
    moved = to_grid(array, affine, grid, (14, 14, 14), "image", threshold=10)
    at = np.linalg.inv(affine) @ grid @ np.stack([*np.indices((14, 14, 14)).reshape(3, -1), np.ones(14**3)])
    inside = ((at[:3] > 1) & (at[:3] < np.array(array.shape)[:, None] - 2)).all(axis=0).reshape(14, 14, 14)
    oracle = itk_resample(array, affine, grid, (14, 14, 14), sitk.sitkBSpline).clip(array.min(), array.max())
    np.testing.assert_allclose(moved[inside], oracle[inside], atol=2e-2)
    outside = ((at[:3] < -1.1) | (at[:3] > np.array(array.shape)[:, None] + 0.1)).any(axis=0).reshape(14, 14, 14)
    assert (moved[outside] == array.min()).all()


def test_probabilities_are_linear_and_fall_to_nothing_outside():
    affine = fake.affine((1.0, 1.0, 1.0), "RAS")
    array = np.random.default_rng(0).random((2, 10, 11, 12)).astype(np.float32)
    grid = fake.affine((0.5, 0.8, 1.5), "RAS", (-3.1, 1.25, 0.4))
    moved = to_grid(array, affine, grid, (40, 9, 7), "probabilities")
    for channel, seen in zip(array, moved, strict=True):
        oracle = itk_resample(channel, affine, grid, (40, 9, 7), sitk.sitkLinear)
        np.testing.assert_allclose(seen, oracle, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(SPACINGS, st.integers(0, 99))
def test_labels_are_the_largest_of_linear_masks(spacing, seed):
    _, label = fake.volume((20, 18, 16), labels=3, seed=seed)
    affine = label.affine
    values = np.array([0, 2, 3, 300], np.uint16)[label.array[0]]  # gaps between values, more than 8 bits
    moved, grid = to_spacing(values, affine, spacing, "label", threshold=10)
    masks = [(values == value).astype(np.float32) for value in (2, 3, 300)]
    foreground = np.stack([itk_resample(mask, affine, grid, moved.shape, sitk.sitkLinear) for mask in masks])
    inside = tuple(slice(0, int((n - 1) / t)) for n, t in zip(values.shape, spacing, strict=True))
    background = 1 - foreground.sum(axis=0)
    oracle = np.array([0, 2, 3, 300])[np.concatenate([background[None], foreground]).argmax(axis=0)]
    ordered = np.sort(np.concatenate([background[None], foreground]), axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-4
    assert moved.dtype == np.uint16
    np.testing.assert_array_equal(moved[inside][clear[inside]], oracle[inside][clear[inside]])


@settings(max_examples=15, deadline=None)
@given(SPACINGS, st.sampled_from(["RAS", "LPI", "ASR"]), st.integers(0, 99))
def test_labels_come_back_to_their_place(spacing, codes, seed):
    _, label = fake.volume((48, 52, 44), labels=2, seed=seed, codes=codes, spacing=(1.0, 1.1, 0.9))
    array = label.array[0]
    ras = fake.affine((1, 1, 1), "RAS")
    turned = to_grid(array, label.affine, *_ras(label), "label")
    moved, grid = to_spacing(turned, _ras(label)[0], spacing, "label")
    assert ras.shape == grid.shape
    back = restore(moved, grid, label.affine, label.shape)
    assert back.shape == array.shape
    for value in (1, 2):
        assert dice(back == value, array == value) > (0.95 if max(spacing) <= 1.2 else 0.85)
    chance = restore((moved == 1)[None].astype(np.float32), grid, label.affine, label.shape)
    centre = [ndimage.center_of_mass(a) for a in (chance[0], array == 1)]
    np.testing.assert_allclose(*centre, atol=0.35)  # voxels: half a voxel's shift would show


def _ras(volume):
    from medlight.scans import reorient

    turned, affine = reorient(volume.array, volume.affine, "RAS")
    return affine, turned.shape[-3:]


def test_an_equal_grid_changes_nothing():
    array = np.random.default_rng(0).normal(0, 1e5, (2, 5, 6, 7)).astype(np.float32)
    affine = fake.affine((0.7, 0.7, 3.0), "RAS", (1e-3, 50, 90))
    rounded = affine.astype(np.float32).astype(np.float64)
    np.testing.assert_array_equal(to_grid(array, affine, rounded, (5, 6, 7), "image"), array)
    flipped = fake.affine((0.7, 0.7, 3.0), "LPS", affine[:3, 3] + [4 * 0.7, 5 * 0.7, 0])
    np.testing.assert_array_equal(to_grid(array, affine, flipped, (5, 6, 7), "image"), array[:, ::-1, ::-1])


def test_thick_slices_are_handled_apart():
    array = smooth((16, 16, 6))
    affine = fake.affine((1.0, 1.0, 5.0), "RAS")
    moved, _ = to_spacing(array, affine, (0.8, 0.8, 2.0), "image")
    # through-plane linear between slices that were resampled in-plane
    flat, _ = to_spacing(array, affine, (0.8, 0.8, 5.0), "image")
    at = np.clip(np.arange(moved.shape[2]) * 2.0 / 5.0, 0, 5)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, 5)
    linear = flat[..., low] * (1 - (at - low)) + flat[..., high] * (at - low)
    free = (flat > array.min()) & (flat < array.max())  # not clipped
    free = free[..., low] & free[..., high]
    np.testing.assert_allclose(moved[free], linear[free], atol=2e-2)
    labels = (array > 0).astype(np.uint8)
    seen, _ = to_spacing(labels, affine, (1.0, 1.0, 2.0), "label")
    np.testing.assert_array_equal(seen, labels[..., np.minimum(np.rint(np.arange(seen.shape[2]) * 0.4).astype(int), 5)])


def test_which_axis_is_thick():
    iso, thick = np.ones(3), np.array([1.0, 5.0, 1.0])
    assert thick_axis((9, 9, 9), (iso, iso), 3.0) is None
    assert thick_axis((9, 9, 9), (iso, thick), 3.0) == 1
    assert thick_axis((9, 1, 9), (iso, thick), 3.0) is None  # a 2D image
    assert thick_axis((9, 9, 9), (np.array([1, 3.0, 1]),), 3.0) is None


def test_overshoot_is_clipped():
    step = np.zeros((20, 4, 4), np.float32)
    step[10:] = 100
    moved, _ = to_spacing(step, np.eye(4), (0.3, 1, 1), "image")
    assert moved.min() == 0
    assert moved.max() == 100


def test_flat_images_keep_their_slice():
    array = smooth((12, 14, 1))
    moved, grid = to_spacing(array, fake.affine((1, 1, 7.0)), (0.5, 0.5, 0.5), "image")
    assert moved.shape == (23, 27, 1)
    assert grid[2, 2] == 7.0
    assert restore(moved[None], grid, fake.affine((1, 1, 7.0)), (12, 14, 1)).shape == (1, 12, 14, 1)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 1), (2, 2, 2), (3, 2, 4)])
def test_tiny_images(shape):
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    for spacing in ((0.5, 0.5, 0.5), (10, 10, 10)):
        for kind in ("image", "probabilities"):
            moved, _ = to_spacing(array, np.eye(4), spacing, kind)
            assert np.isfinite(moved).all()
            assert moved.flat[0] == 0


def test_labels_with_nothing_in_them():
    empty = np.zeros((5, 6, 7), np.uint8)
    moved, _ = to_spacing(empty, np.eye(4), (0.5, 0.5, 0.5), "label")
    assert moved.shape == (9, 11, 13)
    assert not moved.any()


@settings(max_examples=20, deadline=None)
@given(SPACINGS, SPACINGS, st.sampled_from(["RAS", "LPI", "ASR"]), st.booleans(), st.integers(0, 99))
def test_the_size_of_the_blocks_changes_nothing(start, end, codes, turned, seed):
    rng = np.random.default_rng(seed)
    affine = fake.affine(start, codes)
    grid, shape = spaced_grid(fake.affine(start, "RAS"), (20, 17, 15), end)
    if turned:
        grid[:3, :3] = nib.eulerangles.euler2mat(*rng.uniform(-0.4, 0.4, 3)) @ grid[:3, :3]
    label = rng.integers(0, 4, (17, 20, 15), np.uint8)
    scans = (rng.normal(0, 1000, (17, 20, 15)).astype(np.int16), smooth((17, 20, 15)), label)
    kinds = ("image", "probabilities", "label")
    whole = [to_grid(scan, affine, grid, shape, kind) for scan, kind in zip(scans, kinds, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpolate, "SLAB", 300)
        patch.setattr(interpolate, "_CUBE", 9)
        parts = [to_grid(scan, affine, grid, shape, kind) for scan, kind in zip(scans, kinds, strict=True)]
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-3 if turned and one.dtype == np.float32 else 0)
