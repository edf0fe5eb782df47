"""DICOM-SEG: real files against NRRD references and highdicom, what is written read back by other code, bad input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813

from medlight.errors import MedlightError
from medlight.prepare.case import Label
from medlight.scans import Volume
from medlight.scans.dicom_seg import read_seg
from medlight.scans.labels import read_label
from medlight.scans.regions import Grid

RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def nrrd(file: Path) -> Volume:
    """Read a reference by SimpleITK."""
    image = sitk.ReadImage(str(file))
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return Volume(sitk.GetArrayFromImage(image).T[None], RAS @ affine)


REFERENCES = [
    ("liver.dcm", "liver_seg.nrrd", [1]),
    ("partial_overlaps.dcm", "partial_overlaps-1.nrrd", [1, 4, 5]),
    ("partial_overlaps.dcm", "partial_overlaps-2.nrrd", [2]),
    ("partial_overlaps.dcm", "partial_overlaps-3.nrrd", [3]),
    ("sparse-labelmap-noppv.dcm", "sparse_labelmap_noppv_seg.nrrd", [1]),
    ("sparse-labelmap-ppv5.dcm", "sparse_labelmap_ppv5_seg.nrrd", [1]),  # 5 pads the frame that was left out
    ("23x38x3/seg/label.seg", "23x38x3/nrrd/label.nrrd", [1]),
    ("24x38x3/seg/label.seg", "24x38x3/nrrd/label.nrrd", [1]),
]


@pytest.mark.parametrize(("name", "reference", "numbers"), REFERENCES)
def test_masks_equal_dcmqis_references(data_root: Path, name: str, reference: str, numbers: list[int]) -> None:
    folder = data_root / "dicom/dcmqi/segmentations"
    expected = nrrd(folder / reference)
    found = read_seg(folder / name, Grid(expected.shape, expected.affine))
    own = read_seg(folder / name)
    assert np.allclose(own.affine, expected.affine, atol=1e-5)
    for number in numbers:
        segment = next(segment for segment in found.segments if segment.number == number)
        assert np.array_equal(segment.mask, expected.array[0] == number)
        assert segment.mask.any()
        alone = next(segment for segment in own.segments if segment.number == number)
        assert np.array_equal(alone.mask, segment.mask)


HIGHDICOM = [
    "seg_image_ct_binary.dcm",
    "seg_image_ct_binary_fractional.dcm",
    "seg_image_ct_true_fractional.dcm",
    "seg_image_ct_binary_overlap.dcm",
    "seg_image_ct_binary_single_frame.dcm",
]


@pytest.mark.parametrize("name", HIGHDICOM)
def test_masks_equal_highdicoms_own_reading(data_root: Path, name: str) -> None:
    import highdicom as hd

    file = data_root / "dicom/highdicom" / name
    theirs = hd.seg.segread(file).get_volume(allow_missing_positions=True)
    found = read_seg(file)
    order = [2, 1, 0, 3]  # slices, rows, columns
    expected = Volume(np.moveaxis(theirs.array, 3, 0).transpose(0, 3, 2, 1), RAS @ theirs.affine[:, order])
    back = Grid(expected.shape, expected.affine)
    for segment, mask in zip(read_seg(file, back).segments, expected.array, strict=True):
        assert np.allclose(segment.mask, mask, atol=1e-6)
        assert segment.mask.any()
    assert found.fractional == ("fractional" in name)
    assert abs(sum(s.mask.sum(dtype=float) for s in found.segments) - expected.array.sum(dtype=float)) < 1e-3


def test_a_radiographs_segmentation_has_no_place_but_its_pixels(data_root: Path) -> None:
    file = data_root / "dicom/highdicom/seg_image_cr_binary.dcm"
    found = read_seg(file)
    assert found.segments[0].mask.shape == (16, 16, 1)
    stored = pydicom.dcmread(file).pixel_array
    assert np.array_equal(found.segments[0].mask[:, :, 0].T, stored == 1)
    with pytest.raises(MedlightError, match="doesn't say where its frames lie"):
        read_seg(file, Grid((16, 16, 4), np.eye(4)))


@pytest.mark.parametrize("name", ["seg_image_sm_dots.dcm", "seg_image_sm_dots_tiled_full.dcm"])
def test_a_slides_segmentation_is_refused(data_root: Path, name: str) -> None:
    with pytest.raises(MedlightError, match=f"{name}: is of a microscope's slide"):
        read_seg(data_root / "dicom/highdicom" / name)


@pytest.mark.parametrize("spacing", [None, "3.7", "1e-9", "-1"])
def test_a_wrong_spacing_between_slices_moves_nothing(data_root: Path, tmp_path: Path, spacing: str | None) -> None:
    """Highdicom trusts the tag; the frames' positions are what counts."""
    file = data_root / "dicom/dcmqi/segmentations/liver.dcm"
    dataset = pydicom.dcmread(file)
    measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    if spacing is None:
        del measures.SpacingBetweenSlices
    else:
        measures.SpacingBetweenSlices = spacing
    dataset.save_as(tmp_path / "seg.dcm")
    mine, expected = read_seg(tmp_path / "seg.dcm"), read_seg(file)
    assert np.allclose(mine.affine, expected.affine)
    assert np.array_equal(mine.segments[0].mask, expected.segments[0].mask)


def test_on_another_grid_it_is_refused(data_root: Path) -> None:
    folder = data_root / "dicom/dcmqi/segmentations"
    image = nrrd(folder / "liver_seg.nrrd")
    apart = image.affine.copy()
    apart[2, 3] += 0.4
    with pytest.raises(MedlightError, match=r"liver.dcm: frame 1 lies 0.4 voxels off the image's grid"):
        read_seg(folder / "liver.dcm", Grid(image.shape, apart))
    part = Grid((512, 512, 2), image.affine)
    with pytest.raises(MedlightError, match=r"segment 1 goes on outside the image \(frame 3\)"):
        read_seg(folder / "liver.dcm", part)
    far = image.affine.copy()
    far[:3, 3] += 5000
    with pytest.raises(MedlightError, match="outside the image"):
        read_seg(folder / "liver.dcm", Grid(image.shape, far))


def _frame(dataset: pydicom.Dataset) -> pydicom.Dataset:
    return dataset.PerFrameFunctionalGroupsSequence[1]


BREAKS = {
    "lists no segments": lambda d: d.pop("SegmentSequence"),
    "shows segment 9, which is not listed": lambda d: setattr(
        _frame(d).SegmentIdentificationSequence[0], "ReferencedSegmentNumber", 9
    ),
    "doesn't say its segment": lambda d: _frame(d).pop("SegmentIdentificationSequence"),
    "describes 0": lambda d: d.pop("PerFrameFunctionalGroupsSequence"),
    "describes 2": lambda d: d.PerFrameFunctionalGroupsSequence.pop(),
    "200000000|shorter": lambda d: setattr(d, "NumberOfFrames", 2_000_000_000),
    "60000|shorter": lambda d: setattr(d, "Rows", 60000),
    "Rows|holds 0x512": lambda d: d.pop("Rows"),
    "no pixel data": lambda d: d.pop("PixelData"),
    "1000 bytes": lambda d: setattr(d, "PixelData", d.PixelData[:1000]),
    "Segmentation Type": lambda d: setattr(d, "SegmentationType", "GUESS"),
    "ImagePositionPatient": lambda d: setattr(_frame(d).PlanePositionSequence[0], "ImagePositionPatient", ["nan"] * 3),
    "no usable ImagePositionPatient": lambda d: _frame(d).PlanePositionSequence[0].pop("ImagePositionPatient"),
    "no usable ImageOrientationPatient": lambda d: d.SharedFunctionalGroupsSequence[0].pop("PlaneOrientationSequence"),
    "axes or a pixel spacing": lambda d: setattr(
        d.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0], "PixelSpacing", [0, 0]
    ),
    "can't be": lambda d: setattr(
        d.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0], "ImageOrientationPatient", [1, 0, 0, 1, 0, 0]
    ),
    "absurdly many voxels": lambda d: (
        setattr(_frame(d).PlanePositionSequence[0], "ImagePositionPatient", [-235.2, -226.8, 90000]),
        setattr(d, "NumberOfFrames", 3),
    ),
    "frame 2 lies aside": lambda d: setattr(
        _frame(d).PlanePositionSequence[0], "ImagePositionPatient", [-235.2 + 0.810547, -226.8, -127.69]
    ),
    "frame 2 lies where another": lambda d: setattr(
        _frame(d).PlanePositionSequence[0], "ImagePositionPatient", [-235.2, -226.8, -128.69]
    ),
    "no SegmentNumber": lambda d: d.SegmentSequence[0].pop("SegmentNumber"),
    "a segment number twice": lambda d: d.SegmentSequence.append(d.SegmentSequence[0]),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("message", BREAKS)
def test_broken_files_are_refused_by_name(data_root: Path, tmp_path: Path, message: str) -> None:
    dataset = pydicom.dcmread(data_root / "dicom/dcmqi/segmentations/liver.dcm")
    with pydicom.config.disable_value_validation():
        BREAKS[message](dataset)
        dataset.save_as(tmp_path / "broken.dcm")
    with pytest.raises(MedlightError, match=message) as caught:
        read_seg(tmp_path / "broken.dcm")
    assert "broken.dcm" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_what_is_no_segmentation_is_refused(data_root: Path) -> None:
    with pytest.raises(MedlightError, match="is no DICOM-SEG"):
        read_seg(data_root / "dicom/dcmqi/segmentations/ct-3slice/01.dcm")


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "name", ["dcmqi/segmentations/24x38x3/seg/label.seg", "dcmqi/segmentations/sparse-labelmap-ppv5.dcm"]
)
@pytest.mark.parametrize("count", [250, pytest.param(2000, marks=pytest.mark.slow)])
def test_mutants_are_read_or_refused(data_root: Path, tmp_path: Path, name: str, count: int) -> None:
    """Bytes changed, cut out, doubled, cut off: a mask of the frames' size, or one line that names the file."""
    content = (data_root / "dicom" / name).read_bytes()
    rng = np.random.default_rng(count)
    file = tmp_path / "mutant.dcm"
    refusals = []
    for _ in range(count):
        changed = bytearray(content)
        for _ in range(rng.integers(1, 6)):
            at, length = int(rng.integers(132, len(changed))), int(rng.integers(1, 60))
            match rng.integers(5):
                case 0 | 1:
                    changed[at] = int(rng.integers(256))
                case 2:
                    del changed[at : at + length]
                case 3:
                    changed[at:at] = changed[at : at + length]
                case _:
                    del changed[max(at, 200) :]
        file.write_bytes(changed)
        try:
            found = read_seg(file)
        except MedlightError as error:
            refusals.append(str(error))
        else:
            assert all(s.mask.shape == found.segments[0].mask.shape for s in found.segments)
    assert refusals
    assert all("mutant.dcm" in text and len(text.splitlines()) == 1 for text in refusals)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["24x38x3/seg/label.seg", "sparse-labelmap-ppv5.dcm"])
@pytest.mark.parametrize("count", [300, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_changed_header_moves_nothing(data_root: Path, tmp_path: Path, name: str, count: int) -> None:
    """The same mask on the image's grid as before, or a refusal; digits are changed to digits most often."""
    folder = data_root / "dicom/dcmqi/segmentations"
    image = nrrd(folder / "24x38x3/nrrd/label.nrrd")
    labels = [Label(1, "liver")]
    before = read_label(folder / name, image, labels).array
    content = (folder / name).read_bytes()
    end = content.rindex(b"\xe0\x7f\x10\x00")
    rng = np.random.default_rng(count)
    same = 0
    for _ in range(count):
        changed = bytearray(content)
        for at in rng.integers(400, end, rng.integers(1, 3)):
            changed[at] = int(rng.integers(48, 58) if rng.random() < 0.6 else rng.integers(256))
        (tmp_path / "mutant.dcm").write_bytes(changed)
        try:
            found = read_label(tmp_path / "mutant.dcm", image, labels).array
        except MedlightError:
            continue
        assert np.array_equal(found, before)
        same += 1
    assert 0 < same < count
