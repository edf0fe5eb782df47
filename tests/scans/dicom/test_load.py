"""Whole volumes: fake series against what they were made from, real ones against other readers' NIfTI files."""

from __future__ import annotations

import json
from pathlib import Path

import data_store
import nibabel as nib
import numpy as np
import psutil
import pydicom
import pytest
from pydicom.dataset import Dataset

from medlight.errors import MedlightError
from medlight.scans.dicom import decode
from medlight.scans.dicom import load as loading
from medlight.scans.dicom.frames import Stack
from medlight.scans.dicom.load import check_pixels, load, read_dicom
from medlight.scans.dicom.mend import Mends
from medlight.scans.dicom.opened import opened
from medlight.scans.dicom.tree import objects
from tests.data import fake_dicom as fake


def _values(datasets: list[Dataset], make, dtype: str = "uint16") -> list[Dataset]:
    """Give each slice pixels of its own: ``make(slice, rows, columns)``."""
    for index, dataset in enumerate(datasets):
        rows, columns = np.indices((dataset.Rows, dataset.Columns))
        values = np.broadcast_to(make(index, rows, columns), rows.shape).astype(dtype)
        dataset.PixelRepresentation = int(values.dtype.kind == "i")
        dataset.BitsAllocated = dataset.BitsStored = 8 * values.dtype.itemsize
        dataset.HighBit = dataset.BitsStored - 1
        dataset.PixelData = values.tobytes()
    return datasets


def _stacks(folder: Path) -> list[Stack]:
    return loading.headers(objects([folder]).places)[0]


@pytest.mark.parametrize("orientation", [fake.AXIAL, fake.SAGITTAL, fake.CORONAL, fake.OBLIQUE])
@pytest.mark.parametrize("step", [2.5, -2.5])
def test_a_series_lies_where_it_was_made(tmp_path, orientation, step):
    grid = fake.Grid(orientation=orientation, step=step)
    volume = read_dicom(fake.write(fake.series(grid), tmp_path / "series"))
    array, affine = fake.truth(grid)
    if step < 0:  # slices are read along the normal
        array, affine = array[..., ::-1], affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 5], [0, 0, 0, 1]])
    assert volume.array.dtype == np.uint16
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-6)


def test_a_zip_and_a_file_set_are_read_as_the_folder(tmp_path):
    folder = fake.write(fake.series(), tmp_path / "series")
    expected = read_dicom(folder)
    again = read_dicom(fake.zipped(folder, tmp_path / "series.zip"))
    np.testing.assert_array_equal(again.array, expected.array)
    np.testing.assert_array_equal(again.affine, expected.affine)


def test_each_file_is_read_once(tmp_path, monkeypatch):
    folder = fake.write(fake.series(), tmp_path / "series")
    read: list[object] = []

    def noted(place):
        read.append(place)
        return opened(place)

    for module in (loading, decode):
        monkeypatch.setattr(module, "opened", noted)
    read_dicom(folder)
    assert len(read) == len(set(read)) == 6
    for module in (loading, decode):
        monkeypatch.setattr(module, "KEPT_BYTES", 500)  # more than fits is read again, and is the same
    np.testing.assert_array_equal(read_dicom(folder).array, fake.truth(fake.Grid())[0])
    assert len(read) > 12


@pytest.mark.parametrize(
    ("datasets", "status"),
    [
        (lambda: fake.without(fake.series(), 2), "gap"),
        (lambda: fake.uneven(), "uneven"),
        (lambda: fake.tilted(), "tilt"),
        (lambda: fake.doubled(fake.series()), "duplicate"),
        (lambda: fake.localizer(), "not-a-volume"),
        (lambda: fake.secondary_capture(), "not-a-volume"),
        (lambda: fake.two_orientations(1), ""),
        (lambda: fake.two_volumes(), "2 volumes"),
        (lambda: fake.report(), ""),
    ],
)
def test_what_is_no_regular_volume_is_refused_with_its_verdict(tmp_path, datasets, status):
    with pytest.raises(MedlightError, match=status) as caught:
        read_dicom(fake.write(datasets(), tmp_path / "series"))
    assert "series" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_mends_are_taken_by_name_and_recorded(tmp_path):
    gap = fake.write(fake.without(fake.series(), 2), tmp_path / "gap")
    mended = read_dicom(gap, Mends(gap="interpolate"))
    assert mended.shape == (12, 10, 6)
    assert mended.meta["mended"]
    np.testing.assert_allclose(mended.affine, fake.truth(fake.Grid())[1], atol=1e-6)
    with pytest.raises(MedlightError, match="2 volumes"):
        read_dicom(gap, Mends(gap="split"))
    with pytest.raises(MedlightError, match="gap"):
        read_dicom(gap, Mends(tilt="deskew"))
    double = fake.write(fake.doubled(fake.series()), tmp_path / "double")
    np.testing.assert_array_equal(read_dicom(double, Mends(duplicate="first")).array, fake.truth(fake.Grid())[0])


def test_localizers_and_captures_beside_a_volume_are_passed_over(tmp_path):
    folder = fake.write(fake.series(), tmp_path / "study")
    fake.write(fake.localizer(series="plan"), folder / "a")
    fake.write([fake.secondary_capture(), fake.report()], folder / "b")
    (folder / "notes.txt").write_text("no DICOM")
    volume = read_dicom(folder)
    np.testing.assert_array_equal(volume.array, fake.truth(fake.Grid())[0])
    assert volume.meta["passed_over"] >= 3


def test_an_unreadable_object_is_not_passed_over(tmp_path):
    folder = fake.write(fake.series(), tmp_path / "series")
    broken = sorted(folder.iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:-20])
    with pytest.raises(MedlightError, match=broken.name):
        read_dicom(folder)
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(MedlightError, match=broken.name):
        read_dicom(folder)


@pytest.mark.parametrize(
    "tags",
    [
        {"SeriesInstanceUID": "1.2.3"},
        {"Modality": "PT"},
        {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
        {"Rows": None},
        {"Columns": None},
        {"PixelData": None},
    ],
)
@pytest.mark.parametrize("at", [0, 5])
def test_a_slice_at_an_end_is_lost_to_no_damage(tmp_path, tags, at):
    """No gap tells that it is missing: an object that says otherwise by one element is named."""
    datasets = fake.series()
    for keyword, value in tags.items():
        setattr(datasets[at], keyword, value)
        if value is None:
            delattr(datasets[at], keyword)
    with pytest.raises(MedlightError) as raised:
        read_dicom(fake.write(datasets, tmp_path / "series"))
    assert "\n" not in str(raised.value)


def test_a_series_far_from_a_volume_is_passed_over(tmp_path):
    far = fake.plane(fake.Grid(origin=(-20.0, -30.5, 200.0)), 0, SeriesInstanceUID="1.2.3")
    volume = read_dicom(fake.write([*fake.series(), far], tmp_path / "series"))
    assert (volume.array.shape[3], volume.meta["passed_over"]) == (6, 1)


def test_channels_of_a_4d_series_keep_their_descriptors(tmp_path):
    volume = read_dicom(fake.write(fake.by_b_value(), tmp_path / "dwi"))
    array, affine = fake.truth(fake.Grid(), 5)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-6)
    x, y = (-1.0, 0.0, 0.0), (0.0, -1.0, 0.0)  # of the patient, in RAS+
    made = [(0, None), (500, x), (500, y), (1000, x), (1000, y)]
    told = [(channel.b_value, channel.gradient) for channel in volume.channels]
    assert set(told) == set(made)
    np.testing.assert_array_equal(volume.array, array[[made.index(one) for one in told]])
    echoes = read_dicom(fake.write(fake.by_echo(), tmp_path / "echoes"))
    assert [channel.echo_time_ms for channel in echoes.channels] == [4.6, 9.2]
    times = read_dicom(fake.write(fake.by_time(how="trigger"), tmp_path / "times"))
    np.testing.assert_array_equal(times.array, fake.truth(fake.Grid(), 3)[0])
    assert len({channel.frame_time_ms for channel in times.channels}) == 3


@pytest.mark.parametrize("shared", [True, False])
def test_enhanced_multi_frame_and_mosaic(tmp_path, shared):
    array, affine = fake.truth(fake.Grid(), 2)
    volume = read_dicom(fake.write(fake.enhanced(shared=shared, b_values=(0, 800)), tmp_path / "enhanced"))
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-6)
    grid = fake.Grid(shape=(10, 12, 7))
    volume = read_dicom(fake.write(fake.mosaic(grid), tmp_path / "mosaic"))
    array, affine = fake.truth(grid)
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-4)


def test_hounsfield_units_stay_whole_numbers_and_differ_by_slice(tmp_path):
    def stored(index, rows, columns):
        return index * 1000 + rows * 40 + columns

    whole = _values(fake.series(RescaleSlope="1", RescaleIntercept="-1024"), stored)
    volume = read_dicom(fake.write(whole, tmp_path / "whole"))
    assert volume.array.dtype == np.int16
    truth = np.stack([stored(k, *np.indices((10, 12))).T for k in range(6)], -1) - 1024
    np.testing.assert_array_equal(volume.array[0], truth)

    wide = _values(fake.series(RescaleSlope="1", RescaleIntercept="-1024"), lambda k, r, c: k * 13000 + r + c)
    volume = read_dicom(fake.write(wide, tmp_path / "wide"))
    truth = np.stack([(k * 13000 + np.add(*np.indices((10, 12)))).T for k in range(6)], -1) - 1024
    np.testing.assert_array_equal(volume.array[0], truth)

    single = _values(fake.series(modality="PT"), stored)
    for index, dataset in enumerate(single):
        dataset.RescaleSlope, dataset.RescaleIntercept = str(0.25 + index / 8), str(index - 3)
    volume = read_dicom(fake.write(single, tmp_path / "single"))
    assert volume.array.dtype == np.float32
    truth = [(stored(k, *np.indices((10, 12))) * (0.25 + k / 8) + k - 3).T for k in range(6)]
    np.testing.assert_allclose(volume.array[0], np.stack(truth, -1), rtol=1e-6)
    assert volume.meta["suv_factor"] is None
    assert "Units" in volume.meta["suv_note"]


def test_padding_is_air_in_ct_and_the_least_value_elsewhere(tmp_path):
    def stored(index, rows, columns):
        return np.where(rows == 0, -2000, index + rows)

    tags = {"PixelPaddingValue": -2000, "RescaleSlope": "2", "RescaleIntercept": "-10"}
    for modality, air in (("CT", -1024), ("MR", 2 * 1 - 10)):
        datasets = fake.series(modality=modality)
        for dataset in _values(datasets, stored, "int16"):
            for name, value in tags.items():
                setattr(dataset, name, value)
        volume = read_dicom(fake.write(datasets, tmp_path / modality))
        truth = np.stack([(stored(k, *np.indices((10, 12))) * 2 - 10).T for k in range(6)], -1)
        truth[:, 0] = air
        assert volume.array.dtype == np.int16
        np.testing.assert_array_equal(volume.array[0], truth)


def test_padding_below_what_the_stored_type_holds(tmp_path):
    datasets = _values(fake.series(PixelPaddingValue=0), lambda k, r, c: r * 100)
    volume = read_dicom(fake.write(datasets, tmp_path / "ct"))
    assert volume.array.dtype == np.int16
    assert (volume.array[0, :, 0] == -1024).all()
    assert volume.array[0, :, 1:].min() == 100


def test_monochrome1_is_turned(tmp_path):
    volume = read_dicom(fake.write(fake.radiograph(PhotometricInterpretation="MONOCHROME1"), tmp_path / "chest"))
    np.testing.assert_array_equal(volume.array[0, :, :, 0], 65535 - fake.pixels(3, (20, 16)).T)
    assert volume.meta["turned"]


def test_a_radiograph_is_flat_with_the_spacing_of_its_detector(tmp_path):
    folder = fake.write(fake.radiograph(), tmp_path / "chest")
    volume = read_dicom(next(folder.iterdir()))
    assert volume.array.shape == (1, 16, 20, 1)
    assert volume.spacing[:2] == pytest.approx((0.1, 0.2))


def test_colours_are_channels(tmp_path):
    datasets = []
    for index, dataset in enumerate(fake.series(modality="MR")):
        colours = np.random.default_rng(index).integers(0, 255, (10, 12, 3), np.uint8)
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
        dataset.PixelData = colours.tobytes()
        datasets.append(dataset)
    volume = read_dicom(fake.write(datasets, tmp_path / "colour"))
    assert [channel.name for channel in volume.channels] == ["red", "green", "blue"]
    for index, dataset in enumerate(datasets):
        colours = np.frombuffer(dataset.PixelData, np.uint8).reshape(10, 12, 3)
        np.testing.assert_array_equal(volume.array[..., index], colours.transpose(2, 1, 0))


def test_suv_of_a_pet_series(tmp_path):
    datasets = fake.series(modality="PT", Units="BQML", CorrectedImage=["ATTN", "DECY"], DecayCorrection="START")
    for dataset in datasets:
        dataset.PatientWeight, dataset.SeriesDate, dataset.SeriesTime = "80", "20200102", "110000"
        dataset.RadiopharmaceuticalInformationSequence = fake.item(
            RadionuclideTotalDose="4e8", RadionuclideHalfLife="6586.2", RadiopharmaceuticalStartTime="100000"
        )
    volume = read_dicom(fake.write(datasets, tmp_path / "pet"))
    assert volume.meta["suv_factor"] == pytest.approx(80_000 / (4e8 * 0.5 ** (3600 / 6586.2)))
    assert volume.meta["unit"] == "BQML"


def test_no_identity_comes_along(tmp_path):
    datasets = fake.series(WindowCenter="40", WindowWidth="400", WindowCenterWidthExplanation="of Zyzzyva")
    volume = read_dicom(fake.write(datasets, tmp_path / "series"))
    kept = json.dumps(volume.meta) + repr(volume.channels)
    assert volume.meta["windows"] == [{"centre": 40.0, "width": 400.0, "function": "LINEAR"}]
    for words in fake.IDENTITY.values():
        assert words not in kept
    assert "Zyzzyva" not in kept
    assert fake.uid("series", "one") not in kept


def test_a_volume_that_does_not_fit_into_memory_is_named(tmp_path, monkeypatch):
    folder = fake.write(fake.series(), tmp_path / "series")
    nothing = psutil.virtual_memory()._replace(available=100)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: nothing)
    with pytest.raises(MedlightError, match="GiB"):
        read_dicom(folder)


def test_pixels_are_checked_whatever_the_verdict(tmp_path):
    folder = fake.write(fake.without(fake.series(), 2), tmp_path / "gap")
    (stack,) = _stacks(folder)
    assert check_pixels(stack) is None
    with pytest.raises(MedlightError, match="gap"):
        load(stack)
    broken = stack.frames[-1].place.path
    dataset = pydicom.dcmread(broken)
    dataset.PixelData = dataset.PixelData[:-40]
    dataset.save_as(broken)
    fault = check_pixels(stack)
    assert fault is not None
    assert broken.name in fault
    assert "200 bytes" in fault


def _in_ras(image) -> tuple[np.ndarray, np.ndarray]:
    turned = nib.as_closest_canonical(image)
    return np.asanyarray(turned.dataobj), turned.affine


@pytest.mark.parametrize(
    "folder",
    [
        *("anatomical/001", "anatomical/001_implicit", "generic/anatomical/001", "generic/anatomical/001_implicit"),
        *("generic/anatomical/002_non_isotropic", "generic/compressed/001", "generic/compressed_j2k/001"),
        *("generic/compressed_jpeg/001", "generic/compressed_jpegls/001", "generic/compressed_rle/001"),
    ],
)
def test_voxels_and_affine_are_those_of_the_ground_truth(data_root, folder):
    volume = read_dicom(data_root / "dicom" / folder)
    array, affine = _in_ras(nib.Nifti1Image(volume.array[0].astype(np.float64), volume.affine))
    expected, theirs = _in_ras(nib.load(data_root / "dicom" / f"{folder}_ground_truth.nii.gz"))
    np.testing.assert_allclose(array, expected, rtol=1e-6)  # exact for whole numbers, single precision for others
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(array.shape) - 1)
    np.testing.assert_allclose(
        nib.affines.apply_affine(affine, corners), nib.affines.apply_affine(theirs, corners), atol=1e-3
    )


def test_a_colour_series_is_that_of_the_ground_truth(data_root):
    folder = data_root / "dicom" / "generic" / "rgb"
    volume = read_dicom(folder / "001")
    expected, theirs = _in_ras(nib.load(folder / "001_ground_truth.nii.gz"))
    for channel, name in zip(volume.array, "RGB", strict=True):
        array, affine = _in_ras(nib.Nifti1Image(channel, volume.affine))
        np.testing.assert_array_equal(array, expected[name])
        np.testing.assert_allclose(affine, theirs, atol=1e-3)


@pytest.mark.parametrize("name", ["gantrytilting", "notavolume", "slicecount", "sliceincrement", "sliceorientation"])
def test_failing_series_are_refused(data_root, name):
    folder = data_root / "dicom" / "failing" / name
    for series in sorted(path for path in folder.iterdir() if path.is_dir()) or [folder]:
        with pytest.raises(MedlightError):
            read_dicom(series)


def test_a_real_series_is_what_simpleitk_reads(data_root):
    import SimpleITK

    folder = data_root / "dicom" / "datalad_structural" / "dicoms"
    volume = read_dicom(folder)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    np.testing.assert_array_equal(volume.array[0], SimpleITK.GetArrayFromImage(image).T)
    for index in ((0, 0, 0), tuple(n - 1 for n in volume.shape)):
        x, y, z = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(nib.affines.apply_affine(volume.affine, index), (-x, -y, z), atol=1e-3)


_SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"
_PACKAGED = Path(data_store.__file__).parent / "data"
_FILES = sorted(path for root in (_SHIPPED, _PACKAGED) for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize("path", _FILES, ids=lambda path: path.name)
def test_every_file_of_pydicom_is_a_volume_or_refused_by_name(path):
    refusal = ""
    try:
        volume = read_dicom(path)
    except MedlightError as error:
        refusal = str(error)
    if refusal:
        named = path.parent if path.name.startswith("DICOMDIR") else path  # or a file of its set
        assert named.name in refusal
        assert "\n" not in refusal
        return
    assert np.isfinite(volume.array).all()
    assert len(volume.channels) == len(volume.array)
    assert np.linalg.det(volume.affine[:3, :3]) != 0
