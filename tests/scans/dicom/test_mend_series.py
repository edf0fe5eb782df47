"""Mends of whole series of files: real ones, against dicom2nifti and the files themselves, and fakes of every fault."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pydicom
import pytest
from scipy import ndimage

from medlight.errors import MedlightError
from medlight.scans import read
from medlight.scans.dicom.mend import Mends
from tests.data import fake_dicom
from tests.scans.dicom.test_mend import TO_RAS, is_upright, places


def sampled(volume, affine, shape, shift=(0, 0, 0)):
    """A volume's values at another grid's voxels (linear), and which of those lie well inside it."""
    inverse = np.linalg.inv(volume.affine)
    at = places(affine, shape) @ inverse[:3, :3].T + inverse[:3, 3] + np.asarray(shift)
    inside = ((at >= 0) & (at <= np.array(volume.shape) - 1)).all(axis=-1)
    return ndimage.map_coordinates(volume.array[0].astype(float), np.moveaxis(at, -1, 0), order=1), inside


def test_a_real_tilted_ct_agrees_with_dicom2nifti(data_root, tmp_path, monkeypatch):
    from dicom2nifti import dicom_series_to_nifti
    from dicom2nifti import settings as theirs

    folder = data_root / "dicom" / "failing" / "gantrytilting" / "001"
    for name in ("validate_orthogonal", "validate_slicecount", "validate_slice_increment"):
        monkeypatch.setattr(theirs, name, False)
    monkeypatch.setattr(theirs, "resample", True)
    monkeypatch.setattr(theirs, "resample_spline_interpolation_order", 1)
    monkeypatch.setattr(theirs, "resample_padding", -1024)
    dicom_series_to_nifti(folder, tmp_path / "x.nii", reorient_nifti=False)
    other = nib.load(tmp_path / "x.nii")
    with pytest.raises(MedlightError, match=r"tilt: 14\.0 degrees.*--on tilt=deskew mends it"):
        read(folder)
    volume = read(folder, Mends(tilt="deskew"))
    assert is_upright(volume.affine)
    assert volume.meta["mended"] == ["tilt: 14 degrees deskewed"]
    values = other.get_fdata()
    ours, inside = sampled(volume, other.affine, values.shape)
    # Their slices lie 5 mm apart, as along the lean, ours 4.85 mm, as the scanner's: the first plane is the same one.
    first = inside[..., 0] & (values[..., 0] > -1024) & (ours[..., 0] > -1024)
    assert np.median(np.abs(ours - values)[..., 0][first]) < 1
    assert np.corrcoef(ours[inside], values[inside])[0, 1] > 0.98
    for shift in ((0, 1, 0), (0, -1, 0), (1, 0, 0)):
        moved, _ = sampled(volume, other.affine, values.shape, shift)
        assert np.corrcoef(moved[inside], values[inside])[0, 1] < 0.9


def test_a_real_gap_is_filled_between_untouched_slices(data_root):
    folder = data_root / "dicom" / "failing" / "sliceincrement" / "001"
    with pytest.raises(MedlightError, match="10 mm between slices 3 and 4"):
        read(folder)
    volume = read(folder, Mends(gap="interpolate"))
    slices = sorted((pydicom.dcmread(path) for path in folder.iterdir()), key=lambda d: d.ImagePositionPatient[2])
    scale = float(slices[0].RescaleSlope), float(slices[0].RescaleIntercept)
    truth = [d.pixel_array.T * scale[0] + scale[1] for d in slices]
    for k, n in ((0, 0), (1, 1), (2, 2), (4, 3)):
        np.testing.assert_array_equal(volume.array[0, ..., k], truth[n])
    np.testing.assert_allclose(volume.array[0, ..., 3], (truth[2] + truth[3]) / 2, atol=0.5)
    for k, n in ((0, 0), (4, 3)):
        place = TO_RAS[:3, :3] @ np.array(slices[n].ImagePositionPatient, float)
        np.testing.assert_allclose((volume.affine @ [0, 0, k, 1])[:3], place, atol=1e-3)


def test_fake_series_are_mended_end_to_end(tmp_path):
    cases = {
        "gap": (fake_dicom.without(fake_dicom.series(), 2, 3), "interpolate"),
        "uneven": (fake_dicom.uneven(), "resample"),
        "tilt": (fake_dicom.tilted(), "deskew"),
        "duplicate": (fake_dicom.doubled(fake_dicom.series()), "first"),
    }
    for fault, (datasets, mend) in cases.items():
        folder = fake_dicom.write(datasets, tmp_path / fault)
        with pytest.raises(MedlightError, match=f"{fault}: .*; --on {fault}={mend} mends it"):
            read(folder)
        volume = read(folder, Mends(**{fault: mend}))
        assert [note.split(":")[0] for note in volume.meta["mended"]] == [fault]
        assert is_upright(volume.affine)
        assert len(volume.channels) == len(volume.array)
