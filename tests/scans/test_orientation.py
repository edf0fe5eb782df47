"""Turning arrays, against nibabel's own canonical form and by what must not change."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from medlight.scans import orientation, read, reorient
from tests.data import fake

CODES = ["".join(c) for p in itertools.permutations(("LR", "PA", "IS")) for c in itertools.product(*p)]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(CODES), st.sampled_from(CODES), st.integers(1, 3))
def test_every_voxel_keeps_its_place(start, end, channels):
    rng = np.random.default_rng(0)
    affine = fake.affine((0.7, 1.1, 2.0), start, (5, -3, 8))
    affine[:3, :3] = nib.eulerangles.euler2mat(0.1, -0.2, 0.15) @ affine[:3, :3]
    array = rng.random((channels, 3, 4, 5))
    turned, moved = reorient(array, affine, end)
    assert orientation(affine) == start
    assert orientation(moved) == end
    index = np.array([1, 2, 3, 1])
    there = np.linalg.inv(moved) @ affine @ index
    i, j, k = np.rint(there[:3]).astype(int)
    np.testing.assert_allclose(there[:3], [i, j, k], atol=1e-9)
    np.testing.assert_array_equal(turned[:, i, j, k], array[:, 1, 2, 3])
    back, original = reorient(turned, moved, start)
    np.testing.assert_array_equal(back, array)
    np.testing.assert_allclose(original, affine, atol=1e-9)


def test_real_scans_turn_as_nibabel_turns_them(data_root):
    for name in ("t2/t2.nii.gz", "t2s/t2s_seg.nii.gz", "t1/t1w.nii.gz"):
        path = data_root / "sct_testing_data" / name
        volume = read(path)
        turned, affine = reorient(volume.array, volume.affine, "RAS")
        oracle = nib.as_closest_canonical(nib.load(path))
        np.testing.assert_allclose(affine, oracle.affine, atol=1e-4)
        np.testing.assert_array_equal(turned[0], np.asarray(oracle.dataobj))
