"""What a NIfTI header says of time, diffusion and place, and contradictions that are named."""

from __future__ import annotations

import gzip
import resource
import struct

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st

from medlight.errors import MedlightError
from medlight.scans import Channel, Volume, read, write_nifti
from medlight.scans.headers import facts
from tests.data import fake


def save(path, shape=(4, 5, 6), affine=None, **header):
    """Write a NIfTI file; ``header``: fields of it, or q and s as (affine, code)."""
    image = nib.Nifti1Image(np.zeros(shape, np.int16), np.diag([1.0, 2, 3, 1]) if affine is None else affine)
    for key, (matrix, code) in ((k, header.pop(k)) for k in ("q", "s") if k in header):
        (image.set_qform if key == "q" else image.set_sform)(matrix, code=code)
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)
    return path


def times(path):
    return [channel.frame_time_ms for channel in read(path).channels]


@pytest.mark.parametrize(("unit", "step"), [("sec", 2.5), ("msec", 2500), ("usec", 2.5e6)])
def test_frames_have_times_in_any_unit(tmp_path, unit, step):
    image = nib.Nifti1Image(np.zeros((4, 5, 6, 3), np.int16), np.eye(4))
    image.header.set_zooms((1, 1, 1, step))
    image.header.set_xyzt_units("mm", unit)
    nib.save(image, tmp_path / "x.nii")
    assert times(tmp_path / "x.nii") == pytest.approx([0, 2500, 5000])


def test_no_unit_or_another_quantity_is_no_time(tmp_path):
    for unit in (0, 32, 40, 48):  # none, Hz, ppm, rad/s
        path = save(tmp_path / "x.nii", (4, 5, 6, 3), xyzt_units=2 + unit)
        assert times(path) == [None] * 3
    assert times(save(tmp_path / "x.nii", (4, 5, 6, 1), xyzt_units=2 + 8)) == [None]


def test_vectors_of_one_time_share_it(tmp_path):
    path = save(tmp_path / "x.nii", (4, 5, 6, 2, 3), xyzt_units=2 + 8, pixdim=[1, 1, 2, 3, 0.5, 1, 1, 1])
    assert times(path) == [0, 0, 0, 500, 500, 500]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), codes=st.sampled_from(["RAS", "LAS", "LPS", "PSR", "ASL"]))
def test_diffusion_and_times_are_written_and_read(tmp_path_factory, seed, codes):
    folder = tmp_path_factory.mktemp("dwi")
    rng = np.random.default_rng(seed)
    affine = fake.affine((1.0, 1.2, 2.0), codes)
    affine[:3, :3] = nib.eulerangles.euler2mat(*rng.uniform(-0.5, 0.5, 3)) @ affine[:3, :3]
    vectors = rng.normal(size=(4, 3))
    vectors /= np.linalg.norm(vectors, axis=1)[:, None]
    weighted = [Channel("", 3200.0 * (n + 1), 1000.0, gradient=tuple(v)) for n, v in enumerate(vectors)]
    channels = (Channel(b_value=0.0, frame_time_ms=0.0), *weighted)
    write_nifti(Volume(np.zeros((5, 3, 3, 3), np.int16), affine), folder / "plain.nii")
    assert not (folder / "plain.bval").exists()
    assert times(folder / "plain.nii") == [None] * 5
    write_nifti(Volume(np.zeros((5, 3, 3, 3), np.int16), affine, channels), folder / "x.nii.gz")
    back = read(folder / "x.nii.gz").channels
    assert [c.b_value for c in back] == [0, 1000, 1000, 1000, 1000]
    assert back[0].gradient is None
    np.testing.assert_allclose([c.gradient for c in back[1:]], vectors, atol=2e-6)
    np.testing.assert_allclose([c.frame_time_ms for c in back], [c.frame_time_ms for c in channels], rtol=1e-6)


@pytest.mark.parametrize(("codes", "world"), [("RAS", (-1, 0, 0)), ("LAS", (-1, 0, 0)), ("LPS", (1, 0, 0))])
def test_a_gradient_along_the_first_axis_by_hand(tmp_path, codes, world):
    """FSL's rule, worked out: (1, 0, 0) is along I where the affine turns hands over, against it where it doesn't."""
    path = save(tmp_path / "x.nii", (4, 5, 6, 1), fake.affine((1, 1, 1), codes))
    (tmp_path / "x.bval").write_text("1000\n")
    (tmp_path / "x.bvec").write_text("1\n0\n0\n")
    np.testing.assert_allclose(read(path).channels[0].gradient, world, atol=1e-6)


def test_a_table_that_fits_no_frames_is_named(tmp_path):
    path = save(tmp_path / "x.nii.gz", (4, 5, 6, 3))
    for values, vectors, said in (
        ("0 1000", "", "2 b-values for a scan of 3 frames"),
        ("0 1000 nan", "", "not finite"),
        ("zero", "", "no table of numbers"),
        ("0 1000 1000", "1 0 0 1\n0 0 0 0\n0 0 0 0", "gradients"),
        ("0 1000 1000", "1 0\n0", "no table of numbers"),
    ):
        (tmp_path / "x.bval").write_text(values)
        (tmp_path / "x.bvec").unlink(missing_ok=True)
        if vectors:
            (tmp_path / "x.bvec").write_text(vectors)
        with pytest.raises(MedlightError, match=said):
            read(path)
    (tmp_path / "x.bval").write_text("0 1000 1000")
    (tmp_path / "x.bvec").write_text("0 0 0\n0 1 0\n0 0 1\n")  # a line for each frame, or an axis: square is FSL's
    assert [c.b_value for c in read(path).channels] == [0, 1000, 1000]


def test_real_diffusion_reads_with_its_table(data_root, tmp_path):
    source = data_root / "sct_testing_data" / "dmri"
    for name, there in (("dmri.nii.gz", "dmri.nii.gz"), ("bvals.txt", "dmri.bval"), ("bvecs.txt", "dmri.bvec")):
        (tmp_path / there).write_bytes((source / name).read_bytes())
    volume = read(tmp_path / "dmri.nii.gz")
    assert [c.b_value for c in volume.channels] == np.loadtxt(source / "bvals.txt").ravel().tolist()
    np.testing.assert_array_equal(
        volume.array, np.moveaxis(np.asarray(nib.load(source / "dmri.nii.gz").dataobj), -1, 0)
    )
    for channel in volume.channels:
        assert channel.gradient is None or np.linalg.norm(channel.gradient) == pytest.approx(1)


# Place


TURNED = np.array([[0.0, -2, 0, 5], [1, 0, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize("codes", [(1, 1), (1, 2), (2, 1)])
def test_two_places_are_named(tmp_path, codes):
    path = save(tmp_path / "x.nii.gz", q=(np.diag([1.0, 2, 3, 1]), codes[0]), s=(TURNED, codes[1]))
    with pytest.raises(MedlightError, match=r"qform and sform .* mm apart; keep the right one"):
        read(path)
    row = facts(path)
    assert row["status"] == "affine"
    assert "qform and sform" in row["detail"]
    assert row["shape"] == [4, 5, 6]


def test_rounding_and_template_space_are_no_contradiction(tmp_path):
    rng = np.random.default_rng(0)
    for _ in range(20):  # a quaternion in float32, far from the origin
        affine = np.diag([0.7, 0.7, 5, 1.0])
        affine[:3, :3] = nib.eulerangles.euler2mat(*rng.uniform(-3.2, 3.2, 3)) @ affine[:3, :3]
        affine[:3, 3] = rng.uniform(-300, 300, 3)
        path = save(tmp_path / "x.nii.gz", (512, 512, 3), affine, q=(affine, 1), s=(affine, 1))
        np.testing.assert_allclose(read(path).affine, affine, atol=1e-3)
    path = save(tmp_path / "x.nii.gz", q=(np.diag([1.0, 2, 3, 1]), 1), s=(TURNED, 4))
    volume = read(path)
    np.testing.assert_array_equal(volume.affine, TURNED)
    assert "template space" in volume.meta["remarks"][-1]
    assert facts(path)["status"] == "ok"


def test_real_files_contradict_nothing(data_root):
    for path in [*(data_root / "sct_testing_data").rglob("*.nii.gz"), *(data_root / "brats2015").rglob("*.nii*")]:
        assert facts(path)["status"] == "ok", path


def test_lengths_in_other_units_become_millimetres_as_in_itk(tmp_path):
    path = save(tmp_path / "x.nii", affine=np.diag([500.0, 500, 700, 1]), xyzt_units=3)  # micrometres
    assert read(path).spacing == pytest.approx((0.5, 0.5, 0.7))
    assert sitk.ReadImage(str(path)).GetSpacing() == pytest.approx((0.5, 0.5, 0.7))


def test_a_file_that_says_nothing_of_its_place_says_so(tmp_path):
    image = nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), None)
    image.header.set_zooms((1, 2, 3))
    image.header["sform_code"] = image.header["qform_code"] = 0
    nib.save(image, tmp_path / "x.nii")
    assert "says nothing of its place" in facts(tmp_path / "x.nii")["detail"]
    assert read(tmp_path / "x.nii").spacing == (1, 2, 3)


def test_nan_voxels_are_counted(tmp_path):
    array = np.ones((3, 4, 5), np.float32)
    array[0, 0, :2] = np.nan, np.inf
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "x.nii")
    assert facts(tmp_path / "x.nii")["status"] == "ok"
    row = facts(tmp_path / "x.nii", deep=True)
    assert (row["status"], row["detail"][:8]) == ("nan", "2 voxels")


# Headers that lie


def test_packed_and_plain_bombs_cost_no_memory(tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    header = nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)).to_bytes()[:352]
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(header) + 40 * gzip.compress(bytes(50 << 20), 1))  # members
    with pytest.raises(MedlightError, match="more data than the header says"):
        read(tmp_path / "bomb.nii.gz")
    large = bytearray(header)
    large[40:56] = struct.pack("<8h", 4, 30000, 30000, 30000, 100, 1, 1, 1)
    (tmp_path / "large.nii").write_bytes(large)
    with pytest.raises(MedlightError, match=r"30000x30000x30000x100 voxels, .* fit"):
        read(tmp_path / "large.nii")
    large[40:56] = struct.pack("<8h", 3, 1000, 1000, 900, 1, 1, 1, 1)  # 1.7 GiB, of which nothing is there
    (tmp_path / "short.nii").write_bytes(large)
    with pytest.raises(MedlightError, match="cut short"):
        read(tmp_path / "short.nii")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10  # kilobytes


def test_what_nibabel_would_mend_in_silence_is_refused(tmp_path):
    content = bytearray(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)).to_bytes())
    for at, value in ((252, b"\x99\x01"), (344, b"ni1\0"), (344, b"\0\0\0\0")):  # qform's code, the magic
        changed = content.copy()
        changed[at : at + len(value)] = value
        (tmp_path / "x.nii").write_bytes(changed)
        with pytest.raises(MedlightError, match="can't be read as NIfTI"):
            read(tmp_path / "x.nii")
