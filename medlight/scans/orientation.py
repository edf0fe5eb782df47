"""Which way the axes of an array point in the patient."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

Affine = npt.NDArray[np.float64]


def orientation(affine: Affine) -> str:
    """Return where the axes point (the nearest, if oblique): ``RAS`` is right, anterior, superior."""
    return "".join(nib.aff2axcodes(affine))


def reorient(array: npt.NDArray[Any], affine: Affine, codes: str) -> tuple[npt.NDArray[Any], Affine]:
    """Flip and permute the last three axes of an array to point along ``codes``; no value is changed.

    array: ``(..., I, J, K)``. Returns a view and its affine: every voxel stays where it is in the patient.
    """
    start = nib.io_orientation(affine)
    transform = nib.orientations.ornt_transform(start, nib.orientations.axcodes2ornt(tuple(codes)))
    spatial = array.shape[-3:]
    moved = affine @ nib.orientations.inv_ornt_aff(transform, spatial)
    lead = array.ndim - 3
    order = [int(axis) for axis in np.argsort(transform[:, 0])]
    flips = [slice(None, None, int(flip)) for flip in transform[:, 1]]
    flipped: npt.NDArray[Any] = array[(..., *flips)]  # type: ignore[arg-type]
    turned = flipped.transpose(*range(lead), *(lead + axis for axis in order))
    return turned, np.asarray(moved, dtype=np.float64)
