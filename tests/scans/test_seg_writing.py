"""Writing DICOM-SEG: the same mask bit for bit in the same place, by our reader, by pydicom alone and by highdicom."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medlight.errors import MedlightError
from medlight.prepare.case import Label
from medlight.scans import Volume, reorient
from medlight.scans.dicom_seg import read_seg, write_seg
from medlight.scans.labels import read_label
from tests.data import fake_dicom as fake

LIVER = Label(1, "liver", "#AA3311", ("10200004", "SCT", "Liver"))
TUMOUR = Label(2, "tumour", None, ("108369006", "SCT", "Neoplasm"))
DIRECTIONS = [fake.AXIAL, fake.SAGITTAL, fake.CORONAL, fake.OBLIQUE]
NAMES = ("PatientName", "PatientID", "PatientBirthDate", "ReferringPhysicianName", "AccessionNumber")


def mask_of(grid: fake.Grid, values: int = 2, seed: int = 0, share: float = 0.2) -> Volume:
    """A random label map on a fake series' grid; the first and third slice are empty."""
    rng = np.random.default_rng(seed)
    array, affine = fake.truth(grid)
    drawn = rng.integers(1, values + 1, array.shape) * (rng.random(array.shape) < share)
    drawn[..., [0, 2]] = 0
    return Volume(drawn.astype(np.uint8), affine)


def by_pydicom(file: Path, image: Volume) -> np.ndarray:
    """Read a segmentation frame by frame, sharing no code: every pixel is looked up by its own coordinates."""
    dataset = pydicom.dcmread(file)
    found = np.zeros(image.shape, np.uint16)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    rows, columns = np.indices((dataset.Rows, dataset.Columns))
    frames = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    for frame, item in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        axes = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
        spacing = [float(value) for value in shared.PixelMeasuresSequence[0].PixelSpacing]
        corner = np.array(item.PlanePositionSequence[0].ImagePositionPatient, float)
        points = corner + columns[..., None] * axes[:3] * spacing[1] + rows[..., None] * axes[3:] * spacing[0]
        points = points * [-1, -1, 1]
        at = np.rint((points - image.affine[:3, 3]) @ np.linalg.inv(image.affine[:3, :3]).T).astype(int)
        value = 1
        if dataset.SegmentationType == "BINARY":
            where = item if "SegmentIdentificationSequence" in item else shared
            value = where.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        drawn = frame > 0
        found[tuple(at[drawn].T)] = frame[drawn] * value
    return found


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(DIRECTIONS),
    st.sampled_from([2.5, -1.25]),
    st.sampled_from(["LPS", "RAS", "SPL", "PIR"]),
    st.integers(1, 4),
)
def test_what_is_written_is_read_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, seed: int, orientation: tuple, step: float, codes: str, values: int
) -> None:
    folder = tmp_path_factory.mktemp("seg")
    grid = fake.Grid(shape=(9, 11, 5), orientation=orientation, step=step)
    source = fake.write(fake.series(grid), folder / "ct")
    mask = mask_of(grid, values, seed)
    turned = Volume(*reorient(mask.array, mask.affine, codes))
    labels = [Label(value, f"part {value}") for value in range(1, values + 1)]
    write_seg(turned, source, folder / "seg.dcm", labels)
    for drawn in (labels, ()):
        back = read_label(folder / "seg.dcm", mask, drawn)
        assert np.array_equal(back.array, mask.array)
        assert np.array_equal(back.affine, mask.affine)
    assert np.array_equal(read_label(folder / "seg.dcm", turned).array, turned.array)
    assert np.array_equal(by_pydicom(folder / "seg.dcm", mask), mask.array[0])
    alone = read_seg(folder / "seg.dcm")
    assert [segment.number for segment in alone.segments] == list(range(1, values + 1))


def test_highdicom_reads_the_same(tmp_path: Path) -> None:
    import highdicom as hd

    grid = fake.Grid(orientation=fake.OBLIQUE)
    source, mask = fake.write(fake.series(grid), tmp_path / "ct"), mask_of(grid)
    write_seg(mask, source, tmp_path / "seg.dcm", [LIVER, TUMOUR])
    theirs = hd.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True, allow_missing_positions=True)
    lps = np.diag([-1.0, -1, 1, 1]) @ mask.affine[:, [2, 1, 0, 3]]
    placed = hd.Volume(np.zeros(mask.array[0].T.shape, np.uint8), lps, "PATIENT")
    assert np.array_equal(theirs.match_geometry(placed).array.T, mask.array[0])


def test_what_it_refers_to_and_says(tmp_path: Path) -> None:
    grid = fake.Grid()
    images = fake.series(grid)
    source, mask = fake.write(images, tmp_path / "ct"), mask_of(grid)
    write_seg(mask, source, tmp_path / "seg.dcm", [LIVER, TUMOUR])
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    assert dataset.SegmentationType == "BINARY"
    assert dataset.NumberOfFrames == sum((mask.array[0] == v).any(axis=(0, 1)).sum() for v in (1, 2)) < 12
    assert dataset.FrameOfReferenceUID == images[0].FrameOfReferenceUID
    assert dataset.StudyInstanceUID == images[0].StudyInstanceUID
    referred = dataset.ReferencedSeriesSequence[0]
    assert referred.SeriesInstanceUID == images[0].SeriesInstanceUID
    uids = {tuple(image.ImagePositionPatient): image.SOPInstanceUID for image in images}
    assert {item.ReferencedSOPInstanceUID for item in referred.ReferencedInstanceSequence} == set(uids.values())
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        position = tuple(frame.PlanePositionSequence[0].ImagePositionPatient)
        assert frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID == uids[position]
    liver, tumour = dataset.SegmentSequence
    assert liver.SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"
    assert liver.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Anatomical Structure"
    assert tumour.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Morphologically Abnormal Structure"
    assert liver.SegmentAlgorithmType == "AUTOMATIC"
    assert "RecommendedDisplayCIELabValue" in liver


def test_a_label_without_a_code_is_tissue_and_one_drawn_by_hand_says_so(tmp_path: Path) -> None:
    grid = fake.Grid()
    source, mask = fake.write(fake.series(grid), tmp_path / "ct"), mask_of(grid, 1)
    write_seg(mask, source, tmp_path / "seg.dcm", [], made="manual")
    item = pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence[0]
    assert item.SegmentLabel == "label 1"
    assert item.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"
    assert item.SegmentAlgorithmType == "MANUAL"


def test_only_what_the_standard_asks_for_is_taken_from_the_source(tmp_path: Path) -> None:
    grid = fake.Grid()
    source, mask = fake.write(fake.series(grid), tmp_path / "ct"), mask_of(grid)
    write_seg(mask, source, tmp_path / "seg.dcm", [LIVER, TUMOUR])
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    for keyword in NAMES:
        assert dataset.get(keyword) == fake.IDENTITY[keyword]
        delattr(dataset, keyword)
    left = " ".join(str(element.value) for element in dataset.iterall() if element.VR != "SQ")
    words = {word for text in fake.IDENTITY.values() for word in text.replace("^", " ").split() if len(word) > 3}
    assert not [word for word in words if word in left]


def test_values_that_do_not_run_from_1_stay_what_they_are(tmp_path: Path) -> None:
    grid = fake.Grid()
    source, mask = fake.write(fake.series(grid), tmp_path / "ct"), mask_of(grid)
    odd = Volume(np.array([0, 3, 700], np.uint16)[mask.array], mask.affine)
    write_seg(odd, source, tmp_path / "seg.dcm", [Label(3, "kidney")])
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    assert dataset.SegmentationType == "LABELMAP"
    assert dataset.NumberOfFrames == 4
    assert np.array_equal(by_pydicom(tmp_path / "seg.dcm", odd), odd.array[0])
    for labels in ((), [Label(3, "kidney"), Label(700, "label 700")]):
        assert np.array_equal(read_label(tmp_path / "seg.dcm", odd, labels).array, odd.array)


def test_an_empty_mask_is_one_empty_frame(tmp_path: Path) -> None:
    grid = fake.Grid()
    source = fake.write(fake.series(grid), tmp_path / "ct")
    empty = Volume(np.zeros((1, 12, 10, 6), np.uint8), fake.truth(grid)[1])
    write_seg(empty, source, tmp_path / "seg.dcm", [LIVER])
    assert pydicom.dcmread(tmp_path / "seg.dcm").NumberOfFrames == 1
    assert not read_label(tmp_path / "seg.dcm", empty, [LIVER]).array.any()


@pytest.mark.parametrize("shared", [True, False])
def test_an_enhanced_object_is_referred_to_frame_by_frame(tmp_path: Path, shared: bool) -> None:
    grid = fake.Grid(orientation=fake.OBLIQUE)
    made = fake.enhanced(grid, shared=shared)
    source, mask = fake.write(made, tmp_path / "mr"), mask_of(grid)
    write_seg(mask, source, tmp_path / "seg.dcm", [LIVER, TUMOUR])
    assert np.array_equal(read_label(tmp_path / "seg.dcm", mask).array, mask.array)
    assert np.array_equal(by_pydicom(tmp_path / "seg.dcm", mask), mask.array[0])
    positions = [f.PlanePositionSequence[0].ImagePositionPatient for f in made.PerFrameFunctionalGroupsSequence]
    for frame in pydicom.dcmread(tmp_path / "seg.dcm").PerFrameFunctionalGroupsSequence:
        item = frame.DerivationImageSequence[0].SourceImageSequence[0]
        assert frame.PlanePositionSequence[0].ImagePositionPatient == positions[item.ReferencedFrameNumber - 1]


def test_a_mosaics_segmentation_lies_where_its_slices_do(tmp_path: Path) -> None:
    grid = fake.Grid(shape=(10, 12, 7), orientation=fake.OBLIQUE)
    source, mask = fake.write(fake.mosaic(grid), tmp_path / "mr"), mask_of(grid)
    write_seg(mask, source, tmp_path / "seg.dcm", [LIVER, TUMOUR])
    assert np.array_equal(read_label(tmp_path / "seg.dcm", mask).array, mask.array)
    assert np.array_equal(by_pydicom(tmp_path / "seg.dcm", mask), mask.array[0])


def test_a_tilted_series_keeps_its_slices(tmp_path: Path) -> None:
    grid = fake.Grid(degrees=15)
    source, mask = fake.write(fake.series(grid), tmp_path / "ct"), mask_of(grid)
    write_seg(mask, source, tmp_path / "seg.dcm", [LIVER, TUMOUR])
    assert np.array_equal(by_pydicom(tmp_path / "seg.dcm", mask), mask.array[0])
    assert np.array_equal(read_label(tmp_path / "seg.dcm", mask).array, mask.array)


def test_a_mask_on_another_grid_has_its_own_frames(tmp_path: Path) -> None:
    """As after a mend that resamples: between the source's slices and of another size."""
    source = fake.write(fake.without(fake.series(fake.Grid()), 2), tmp_path / "ct")
    other = fake.Grid(shape=(14, 15, 9), step=1.7, origin=(-21.0, -31.5, 40.0))
    mask = mask_of(other)
    write_seg(mask, source, tmp_path / "seg.dcm", [LIVER, TUMOUR])
    assert np.array_equal(by_pydicom(tmp_path / "seg.dcm", mask), mask.array[0])
    assert np.array_equal(read_label(tmp_path / "seg.dcm", mask).array, mask.array)


@pytest.mark.parametrize("part", [slice(0, 3), slice(4, 8)])
def test_a_part_of_a_series_with_a_gap_refers_to_its_own_slices(tmp_path: Path, part: slice) -> None:
    images = fake.series(fake.Grid(shape=(10, 12, 8)))
    source = fake.write(fake.without(images, 3), tmp_path / "ct")
    affine = fake.truth(fake.Grid())[1]
    affine[:3, 3] += affine[:3, 2] * part.start
    mask = Volume(np.ones((1, 12, 10, part.stop - part.start), np.uint8), affine)
    write_seg(mask, source, tmp_path / "seg.dcm", [LIVER])
    frames = pydicom.dcmread(tmp_path / "seg.dcm").PerFrameFunctionalGroupsSequence
    uids = {image.ImagePositionPatient[2]: image.SOPInstanceUID for image in images[part]}
    assert len(frames) == len(uids)
    for frame in frames:
        height = frame.PlanePositionSequence[0].ImagePositionPatient[2]
        assert frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID == uids[height]
    assert np.array_equal(read_label(tmp_path / "seg.dcm", mask).array, mask.array)


def test_of_a_4d_series_the_first_frames_are_referred_to(tmp_path: Path) -> None:
    grid = fake.Grid()
    images = fake.by_b_value((0.0, 500.0))
    source, mask = fake.write(images, tmp_path / "mr"), mask_of(grid)
    write_seg(mask, source, tmp_path / "seg.dcm", [LIVER, TUMOUR])
    assert np.array_equal(read_label(tmp_path / "seg.dcm", mask).array, mask.array)
    assert len(pydicom.dcmread(tmp_path / "seg.dcm").ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 6


def test_a_zip_and_deflated_files_are_sources_too(tmp_path: Path) -> None:
    grid = fake.Grid()
    images = fake.series(grid)
    for image in images:
        image.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    source, mask = fake.zipped(fake.write(images, tmp_path / "ct"), tmp_path / "ct.zip"), mask_of(grid)
    write_seg(mask, source, tmp_path / "seg.dcm", [LIVER, TUMOUR])
    assert np.array_equal(read_label(tmp_path / "seg.dcm", mask).array, mask.array)


def test_a_radiograph_has_one_frame_and_no_place(tmp_path: Path) -> None:
    source = fake.write(fake.radiograph(FrameOfReferenceUID=None), tmp_path / "dx")
    rng = np.random.default_rng(1)
    mask = Volume((rng.random((1, 16, 20, 1)) < 0.3).astype(np.uint8), np.diag([-0.1, -0.2, 1, 1]))
    write_seg(mask, source, tmp_path / "seg.dcm", [LIVER])
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    assert np.array_equal(dataset.pixel_array.reshape(20, 16), mask.array[0, :, :, 0].T)
    assert np.array_equal(read_label(tmp_path / "seg.dcm", mask).array, mask.array)


def test_headers_that_scanners_leave_out_are_no_hindrance(tmp_path: Path) -> None:
    grid = fake.Grid()
    bare = dict.fromkeys((*NAMES, "StudyID", "StudyTime", "SliceThickness", "FrameOfReferenceUID"))
    images = fake.series(grid, **bare)
    for n, image in enumerate(images):
        image.ImageOrientationPatient = [1, 1e-7 * n, 0, 0, 1, 0]
        image.SpacingBetweenSlices = 7
    source, mask = fake.write(images, tmp_path / "ct"), mask_of(grid)
    write_seg(mask, source, tmp_path / "seg.dcm", [LIVER, TUMOUR])
    assert np.array_equal(read_label(tmp_path / "seg.dcm", mask).array, mask.array)
    assert np.allclose(read_seg(tmp_path / "seg.dcm").affine[:3, :3], mask.affine[:3, :3])


def test_the_patients_name_keeps_its_letters(tmp_path: Path) -> None:
    grid = fake.Grid()
    images = fake.series(grid, SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg")
    source, mask = fake.write(images, tmp_path / "ct"), mask_of(grid)
    write_seg(mask, source, tmp_path / "seg.dcm", [Label(1, "größe"), Label(2, "肝臓")])
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    assert str(dataset.PatientName) == "Müller^Jörg"
    assert [item.SegmentLabel for item in dataset.SegmentSequence] == ["größe", "肝臓"]


def test_of_several_series_the_one_with_the_masks_grid_is_meant(tmp_path: Path) -> None:
    grid, other = fake.Grid(), fake.Grid(origin=(-20.0, -30.5, 43.0))
    fake.write(fake.series(other, series="two"), tmp_path / "study" / "b")
    fake.write(fake.series(grid), tmp_path / "study" / "a")
    write_seg(mask_of(grid), tmp_path / "study", tmp_path / "seg.dcm", [LIVER, TUMOUR])
    referred = pydicom.dcmread(tmp_path / "seg.dcm").ReferencedSeriesSequence[0].SeriesInstanceUID
    assert referred == fake.uid("series", "one")
    fake.write(fake.series(grid, series="three"), tmp_path / "study" / "c")
    with pytest.raises(MedlightError, match="2 series could be what the mask was made of"):
        write_seg(mask_of(grid), tmp_path / "study", tmp_path / "seg.dcm", [LIVER, TUMOUR])


def test_wrong_calls_are_named_and_leave_nothing(tmp_path: Path) -> None:
    grid = fake.Grid()
    source, mask = fake.write(fake.series(grid), tmp_path / "ct"), mask_of(grid)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(MedlightError, match=r"seg.nii: a DICOM-SEG is called .dcm"):
        write_seg(mask, source, tmp_path / "seg.nii", [LIVER, TUMOUR])
    with pytest.raises(MedlightError, match="one channel of whole numbers"):
        write_seg(Volume(mask.array * 0.5, mask.affine), source, tmp_path / "seg.dcm", [LIVER])
    with pytest.raises(MedlightError, match="can't be a segment"):
        write_seg(mask, source, tmp_path / "seg.dcm", [Label(1, "x" * 65), TUMOUR])
    with pytest.raises(MedlightError, match="can't be a segment"):
        write_seg(mask, source, tmp_path / "seg.dcm", [Label(1, "a", None, ("", "", "")), TUMOUR])
    fake.write([fake.report(), *fake.localizer()], tmp_path / "sr")
    with pytest.raises(MedlightError, match="holds no image"):
        write_seg(mask, tmp_path / "sr", tmp_path / "seg.dcm", [LIVER, TUMOUR])
    fake.write(fake.series(grid, StudyInstanceUID=None, StudyDate="Zyzzyva"), tmp_path / "bad")
    with pytest.raises(MedlightError, match="no segmentation can refer to these images") as caught:
        write_seg(mask, tmp_path / "bad", tmp_path / "seg.dcm", [LIVER, TUMOUR])
    assert "Zyzzyva" not in str(caught.value)
    assert sorted(p for p in tmp_path.rglob("*") if not {"sr", "bad"} & set(p.parts)) == before


@pytest.mark.parametrize(
    ("grid", "told"),
    [
        (fake.Grid(origin=(-20.0, -30.5, 43.0)), "12x10x6 voxels and the series 12x10x6"),
        (fake.Grid(shape=(10, 12, 5)), "12x10x5 voxels and the series 12x10x6"),
        (fake.Grid(shape=(14, 15, 9), step=1.7), "15x14x9 voxels and the series 12x10x6"),
    ],
)
def test_a_mask_of_another_grid_is_refused(tmp_path: Path, grid: fake.Grid, told: str) -> None:
    source = fake.write(fake.series(fake.Grid()), tmp_path / "ct")
    with pytest.raises(MedlightError, match=f"ct: the mask has {told}, with corners up to .* mm apart"):
        write_seg(mask_of(grid), source, tmp_path / "seg.dcm", [LIVER, TUMOUR])
    assert not (tmp_path / "seg.dcm").exists()


def test_a_mask_elsewhere_than_a_series_to_be_mended_is_refused(tmp_path: Path) -> None:
    source = fake.write(fake.without(fake.series(), 2), tmp_path / "ct")
    with pytest.raises(MedlightError, match="mm apart"):
        write_seg(mask_of(fake.Grid(origin=(400.0, 0.0, 0.0))), source, tmp_path / "seg.dcm", [LIVER, TUMOUR])


@pytest.mark.parametrize("shape", [(35, 51, 5), (7, 9, 5), (1, 3, 5)])
@pytest.mark.parametrize("values", [(0, 3, 7), (0, 3, 700)])
def test_slices_of_an_odd_number_of_pixels(tmp_path: Path, shape: tuple[int, int, int], values: tuple) -> None:
    """gdcm's encoder of run lengths ends the process for these."""
    grid = fake.Grid(shape=shape)
    source = fake.write(fake.series(grid), tmp_path / "ct")
    drawn = mask_of(grid, share=0.6)
    mask = Volume(np.array(values, np.uint16)[drawn.array], drawn.affine)
    write_seg(mask, source, tmp_path / "seg.dcm", [])
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    assert dataset.file_meta.TransferSyntaxUID == pydicom.uid.RLELossless
    assert np.array_equal(by_pydicom(tmp_path / "seg.dcm", mask), mask.array[0])


def test_an_image_is_no_label_map(tmp_path: Path) -> None:
    grid = fake.Grid()
    source = fake.write(fake.series(grid), tmp_path / "ct")
    affine, count = fake.truth(grid)[1], 12 * 10 * 6
    for values, told in (
        (np.arange(count), "719 different values are an image's"),
        (np.arange(count) % 125, "124 different values are an image's"),
        (np.arange(count) % 300 - 1, "-1 is no label"),
        (np.arange(count) % 2 * 70000, "70000 is no label"),
        (np.arange(count) * 0.5, "one channel of whole numbers, not 1 of float64"),
    ):
        with pytest.raises(MedlightError, match=told):
            write_seg(Volume(values.reshape(1, 12, 10, 6), affine), source, tmp_path / "seg.dcm", [])
    assert not (tmp_path / "seg.dcm").exists()


def test_a_label_map_may_have_many_labels(tmp_path: Path) -> None:
    grid = fake.Grid()
    source = fake.write(fake.series(grid), tmp_path / "ct")
    mask = Volume((np.arange(12 * 10 * 6) // 4).astype(np.uint8).reshape(1, 12, 10, 6), fake.truth(grid)[1])
    write_seg(mask, source, tmp_path / "seg.dcm", [])
    assert np.array_equal(by_pydicom(tmp_path / "seg.dcm", mask), mask.array[0])


def test_a_real_image_is_no_label_map(data_root: Path, tmp_path: Path) -> None:
    from medlight.scans import read

    image = read(data_root / "hippocampus/images/hippocampus_001.nii.gz")
    with pytest.raises(MedlightError, match="124 different values are an image's"):
        write_seg(image, tmp_path, tmp_path / "seg.dcm", [])


def test_nothing_of_the_patient_is_printed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    grid = fake.Grid()
    images = fake.series(grid, PatientName="Zyzzyva", ReferringPhysicianName="Zyzzyva", PatientID="Zyzzyva " * 9)
    source = fake.write(images, tmp_path / "ct")
    caplog.clear()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        write_seg(mask_of(grid), source, tmp_path / "seg.dcm", [LIVER, TUMOUR])
    assert [*said, *caplog.records] == []
    assert pydicom.dcmread(tmp_path / "seg.dcm").PatientName == "Zyzzyva"


def test_a_real_series_and_its_liver(data_root: Path, tmp_path: Path) -> None:
    folder = data_root / "dicom/dcmqi/segmentations"
    affine = np.diag([-0.810547, -0.810547, 1.0, 1.0])
    affine[:3, 3] = 235.199997, 226.800003, -128.690002
    image = Volume(np.zeros((1, 512, 512, 3), np.int16), affine)
    liver = read_label(folder / "liver.dcm", image)
    write_seg(liver, folder / "ct-3slice", tmp_path / "seg.dcm", [LIVER])
    assert np.array_equal(read_label(tmp_path / "seg.dcm", image, [LIVER]).array, liver.array)
    assert np.array_equal(by_pydicom(tmp_path / "seg.dcm", image), liver.array[0])
