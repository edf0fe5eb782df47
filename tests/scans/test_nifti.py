"""Reading and writing NIfTI, against nibabel and SimpleITK."""

from __future__ import annotations

import gzip
import os

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medlight.errors import MedlightError, UsageError
from medlight.scans import Volume, read, stem, write_nifti
from tests.data import fake

DTYPES = ["uint8", "int16", "uint16", "int32", "float32", "float64", "int64"]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.tuples(*[st.integers(1, 5)] * 4),
    suffix=st.sampled_from([".nii", ".nii.gz"]),
    seed=st.integers(0, 99),
)
def test_what_is_written_is_read(tmp_path, dtype, shape, suffix, seed):
    rng = np.random.default_rng(seed)
    array = rng.integers(0, 100, shape).astype(dtype)
    affine = np.eye(4)
    affine[:3] = (np.diag([1, -2, 3, 0])[:3] + rng.normal(0, 0.2, (3, 4))).astype(np.float32)  # sheared
    path = tmp_path / f"x{suffix}"
    write_nifti(Volume(array, affine), path)
    back = read(path)
    assert back.array.dtype == array.dtype
    np.testing.assert_array_equal(back.array, array)
    np.testing.assert_array_equal(back.affine, affine)
    assert len(back.channels) == shape[0]


def test_written_file_as_others_see_it(tmp_path):
    image, _ = fake.volume((9, 11, 7), spacing=(0.8, 1.0, 2.5), codes="LPS")
    write_nifti(image, tmp_path / "x.nii.gz")
    seen = nib.load(tmp_path / "x.nii.gz")
    np.testing.assert_array_equal(np.asarray(seen.dataobj), image.array[0])
    np.testing.assert_allclose(seen.affine, image.affine, atol=1e-5)
    assert seen.header.get_xyzt_units()[0] == "mm"
    itk = sitk.ReadImage(str(tmp_path / "x.nii.gz"))
    lps = np.diag([-1, -1, 1]) @ image.affine[:3, 3]
    np.testing.assert_allclose(itk.GetOrigin(), lps, atol=1e-4)
    np.testing.assert_allclose(itk.GetSpacing(), image.spacing, atol=1e-6)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(itk).transpose(2, 1, 0), image.array[0])


def test_scaled_values_are_the_scanners_own(tmp_path):
    stored = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    image = nib.Nifti1Image(stored, np.eye(4))
    image.header.set_slope_inter(2.0, -1024.0)
    content = bytearray(image.to_bytes())
    content[-stored.nbytes :] = stored.tobytes()
    (tmp_path / "x.nii").write_bytes(content)
    volume = read(tmp_path / "x.nii")
    np.testing.assert_array_equal(volume.array[0], nib.load(tmp_path / "x.nii").get_fdata())
    assert volume.array.dtype == np.float32
    assert volume.array.min() == -1024


def test_channels_come_from_time_vectors_and_colour(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6, 3), np.float32), np.eye(4)), tmp_path / "time.nii")
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6, 1, 3), np.float32), np.eye(4)), tmp_path / "vector.nii")
    nib.save(nib.Nifti1Image(np.zeros((4, 5), np.float32), np.eye(4)), tmp_path / "flat.nii")
    colour = np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    colour["G"] = 7
    nib.save(nib.Nifti1Image(colour, np.eye(4)), tmp_path / "colour.nii")
    assert read(tmp_path / "time.nii").array.shape == (3, 4, 5, 6)
    assert read(tmp_path / "vector.nii").array.shape == (3, 4, 5, 6)
    assert read(tmp_path / "flat.nii").array.shape == (1, 4, 5, 1)
    seen = read(tmp_path / "colour.nii")
    assert seen.array.shape == (3, 4, 5, 6)
    assert seen.array[:, 0, 0, 0].tolist() == [0, 7, 0]


def test_nifti_2_and_big_endian(tmp_path):
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    nib.save(nib.Nifti2Image(array, np.eye(4)), tmp_path / "two.nii.gz")
    big = nib.Nifti1Image(array.astype(">i2"), np.eye(4), nib.Nifti1Header(endianness=">"))
    big.set_data_dtype(">i2")
    nib.save(big, tmp_path / "big.nii")
    for name in ("two.nii.gz", "big.nii"):
        volume = read(tmp_path / name)
        np.testing.assert_array_equal(volume.array[0], array)
        assert volume.array.dtype == np.dtype("=i2")


def test_a_flat_file_gets_a_slice_axis(tmp_path):
    header = nib.Nifti1Header()
    header["sform_code"], header["srow_x"], header["srow_y"] = 1, [0.5, 0, 0, 3], [0, 0.5, 0, 4]
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 1), np.uint8), None, header), tmp_path / "x.nii")
    assert read(tmp_path / "x.nii").spacing == (0.5, 0.5, 1.0)


@pytest.mark.parametrize("kind", ["empty", "truncated", "text", "singular", "complex"])
def test_a_bad_file_is_named(tmp_path, kind):
    fake.folders(tmp_path, 1, (8, 8, 8))
    path = fake.spoil(tmp_path, "case_00", kind)
    with pytest.raises(MedlightError) as caught:
        read(path)
    text = str(caught.value)
    assert str(path) in text
    assert ";" in text  # the mend
    assert "\n" not in text


def test_damage_inside_the_compressed_stream_is_seen(tmp_path):
    fake.folders(tmp_path, 1, (8, 8, 8))
    path = tmp_path / "images" / "case_00.nii.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(MedlightError, match="can't be read"):
        read(path)
    path.write_bytes(gzip.compress(b"")[:8])
    with pytest.raises(MedlightError, match="can't be read"):
        read(path)


def test_absent_and_foreign_files(tmp_path):
    with pytest.raises(MedlightError, match="no such file"):
        read(tmp_path / "absent.nii")
    (tmp_path / "x.docx").write_text("x")
    with pytest.raises(UsageError, match=r"convert it to \.nii"):
        read(tmp_path / "x.docx")


def test_affines_that_place_nothing(tmp_path):
    image = nib.Nifti1Image(np.zeros((3, 3, 3), np.uint8), np.eye(4))
    raw = bytearray(image.to_bytes())
    raw[280:284] = np.float32(np.nan).tobytes()
    (tmp_path / "x.nii").write_bytes(raw)
    with pytest.raises(MedlightError, match="not finite"):
        read(tmp_path / "x.nii")


@pytest.mark.parametrize(
    ("note", "held"), [("", b""), ("x" * 79, b"x" * 79), ("x" * 80, b"x" * 76 + b"..."), ("5 µm", b"5 ?m")]
)
def test_a_note_is_the_headers_description(tmp_path, note, held):
    write_nifti(Volume(np.zeros((1, 2, 3, 4), np.uint8), np.eye(4)), tmp_path / "a.nii", note)
    assert nib.load(tmp_path / "a.nii").header["descrip"].item() == held
    assert read(tmp_path / "a.nii").shape == (2, 3, 4)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    image, _ = fake.volume((4, 4, 4))
    path = tmp_path / "x.nii.gz"
    write_nifti(image, path)
    before = path.read_bytes()

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib, "save", full)
    with pytest.raises(OSError, match="No space"):
        write_nifti(Volume(image.array + 1, image.affine), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["x.nii.gz"]


def test_half_precision_and_booleans_have_no_place_in_the_format(tmp_path):
    array = np.eye(4)[None, :, :, None]
    for dtype, kept in ((bool, "uint8"), (np.float16, "float32")):
        write_nifti(Volume(array.astype(dtype), np.eye(4)), tmp_path / "x.nii")
        back = read(tmp_path / "x.nii")
        assert back.array.dtype == kept
        np.testing.assert_array_equal(back.array, array)
    with pytest.raises(MedlightError, match="rename"):
        write_nifti(Volume(array, np.eye(4)), tmp_path / "x.png")


def test_stem():
    from pathlib import Path

    assert [stem(Path(name)) for name in ("a.b.nii.gz", "a.nii", "a.NII.GZ", "a.csv")] == ["a.b", "a", "a", "a"]


def test_real_hippocampi_read_as_nibabel_reads_them(data_root):
    for path in sorted((data_root / "hippocampus" / "images").glob("*.nii.gz"))[:5]:
        image = nib.load(path)
        volume = read(path)
        np.testing.assert_array_equal(volume.array[0], np.asarray(image.dataobj))
        np.testing.assert_array_equal(volume.affine, image.affine)
