"""Label maps from segmentations and structures: which segment is which value, and who wins where they overlap."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813

from medlight.errors import MedlightError
from medlight.prepare.case import Label
from medlight.prepare.sources import labels_from
from medlight.scans import Volume, read, write_nifti
from medlight.scans.labels import read_label
from medlight.scans.regions import origin

GREEN, ORANGE, PURPLE, LIGHT, DARK = range(1, 6)


@pytest.fixture(scope="module")
def folder(data_root: Path) -> Path:
    return data_root / "dicom/dcmqi/segmentations"


@pytest.fixture(scope="module")
def image() -> Volume:
    """The grid of dcmqi's CT: three slices."""
    affine = np.diag([-0.810547, -0.810547, 1.0, 1.0])
    affine[:3, 3] = 235.199997, 226.800003, -128.690002
    return Volume(np.zeros((1, 512, 512, 3), np.int16), affine)


def reference(folder: Path, name: str) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(folder / name))).T


def edited(folder: Path, out: Path, names: Sequence[str], numbers: Sequence[int] | None = None) -> Path:
    """Copy the five overlapping segments with other names and without their coded terms."""
    dataset = pydicom.dcmread(folder / "partial_overlaps.dcm")
    for item, name in zip(dataset.SegmentSequence, names, strict=True):
        item.SegmentLabel = name
        item.SegmentedPropertyTypeCodeSequence = []
    dataset.save_as(out)
    return out


def test_a_segments_number_is_its_value_where_nothing_is_named(folder: Path, image: Volume) -> None:
    found = read_label(folder / "liver.dcm", image)
    assert np.array_equal(found.array[0], reference(folder, "liver_seg.nrrd"))
    assert found.array.dtype == np.uint8
    assert np.array_equal(found.affine, image.affine)


@pytest.mark.parametrize(
    "label",
    [
        Label(7, "liver"),
        Label(7, "LIVER "),
        Label(7, "Leber", code=("T-62000", "SRT", "Liver")),
        Label(7, "Leber", code=("10200004", "SCT", "Liver")),  # the same term in the newer scheme
    ],
)
def test_segments_are_found_by_name_or_code(folder: Path, image: Volume, label: Label) -> None:
    found = read_label(folder / "liver.dcm", image, [Label(0, "background"), label])
    assert np.array_equal(found.array[0], 7 * reference(folder, "liver_seg.nrrd"))


def test_else_by_number(folder: Path, image: Volume) -> None:
    found = read_label(folder / "liver.dcm", image, [Label(1, "Leber"), Label(2, "Milz")])
    assert np.array_equal(found.array[0], reference(folder, "liver_seg.nrrd"))


def test_a_segment_that_is_no_label_is_refused(folder: Path, image: Volume, tmp_path: Path) -> None:
    with pytest.raises(MedlightError, match=r"liver.dcm: segments 1 have neither a name nor a code of label_names"):
        read_label(folder / "liver.dcm", image, [Label(2, "spleen")])
    file = edited(folder, tmp_path / "seg.dcm", ["liver", "b", "c", "d", "e"])
    with pytest.raises(MedlightError, match=r"segments 2, 3, 4, 5 have neither"):
        read_label(file, image, [Label(1, "liver"), Label(2, "spleen"), Label(3, "b1"), Label(4, "c1"), Label(5, "d1")])


def test_a_name_and_a_code_that_disagree_are_refused(folder: Path, image: Volume) -> None:
    labels = [Label(1, "liver"), Label(2, "spleen", code=("10200004", "SCT", "Liver"))]
    with pytest.raises(MedlightError, match=r"segment 1 fits the labels 1, 2; give them names and codes"):
        read_label(folder / "liver.dcm", image, labels)


def test_a_name_tells_apart_what_has_the_same_code(folder: Path, image: Volume) -> None:
    code = ("10200004", "SCT", "Liver")
    labels = [Label(4, "left liver", code=code), Label(5, "Liver", code=code)]
    assert set(np.unique(read_label(folder / "liver.dcm", image, labels).array)) == {0, 5}


def test_overlap_is_refused_and_an_order_settles_it(folder: Path, image: Volume, tmp_path: Path) -> None:
    first, second, third = (reference(folder, f"partial_overlaps-{n}.nrrd") for n in (1, 2, 3))
    with pytest.raises(MedlightError, match=r"partial_overlaps.dcm: the labels \d and \d overlap \(at voxel"):
        read_label(folder / "partial_overlaps.dcm", image)
    names = {1: "green", 2: "orange", 3: "purple", 4: "light blue", 5: "dark blue"}
    ranked = {value: {"name": name, "order": value * 10} for value, name in names.items()}
    found = read_label(folder / "partial_overlaps.dcm", image, labels_from(ranked)).array[0]
    masks = [first == 1, second == 2, third == 3, first == 4, first == 5]
    expected = np.zeros(image.shape, np.uint8)
    for value, mask in enumerate(masks, 1):
        expected[mask] = value
    assert np.array_equal(found, expected)
    turned = {value: {"name": name, "order": -value} for value, name in names.items()}
    found = read_label(folder / "partial_overlaps.dcm", image, labels_from(turned)).array[0]
    for value, mask in reversed(list(enumerate(masks, 1))):
        expected[mask] = value
    assert np.array_equal(found, expected)
    one = {value: {"name": name, "order": 3} for value, name in names.items()}
    with pytest.raises(MedlightError, match="overlap"):
        read_label(folder / "partial_overlaps.dcm", image, labels_from(one))


def test_segments_of_one_label_may_overlap(folder: Path, image: Volume, tmp_path: Path) -> None:
    file = edited(folder, tmp_path / "seg.dcm", ["tumour"] * 5)
    found = read_label(file, image, [Label(3, "Tumour")]).array[0]
    union = np.any([reference(folder, f"partial_overlaps-{n}.nrrd") > 0 for n in (1, 2, 3)], axis=0)
    assert np.array_equal(found, 3 * union)


def test_a_fraction_counts_from_one_half(data_root: Path) -> None:
    file = data_root / "dicom/highdicom/seg_image_ct_true_fractional.dcm"
    stored = pydicom.dcmread(file)
    affine = np.diag([-0.488281, -0.488281, 1.25, 1.0])
    affine[:3, 3] = 125, 128.100006, 103.019997
    found = read_label(file, Volume(np.zeros((1, 16, 16, 3), np.int16), affine)).array[0]
    assert np.array_equal(found, (stored.pixel_array.transpose(2, 1, 0) >= 127.5).astype(np.uint8))
    assert 0 < found.sum() < found.size


def test_a_folder_may_hold_the_images_too(folder: Path, image: Volume, tmp_path: Path) -> None:
    shutil.copytree(folder / "ct-3slice", tmp_path / "case")
    shutil.copy(folder / "liver.dcm", tmp_path / "case" / "0815")
    found = read_label(tmp_path / "case", image)
    assert np.array_equal(found.array[0], reference(folder, "liver_seg.nrrd"))
    shutil.copy(folder / "liver.dcm", tmp_path / "case" / "4711")
    with pytest.raises(MedlightError, match=r"holds 2 segmentations or structure sets"):
        read_label(tmp_path / "case", image)


def test_nifti_comes_as_it_is_stored(tmp_path: Path, image: Volume) -> None:
    stored = Volume(np.arange(24, dtype=np.uint8).reshape(1, 2, 3, 4), np.diag([2.0, 2, 2, 1]))
    write_nifti(stored, tmp_path / "label.nii.gz")
    found = read_label(tmp_path / "label.nii.gz", image, [Label(1, "liver")])
    assert np.array_equal(found.array, stored.array)
    assert np.array_equal(found.affine, stored.affine)


def test_no_name_of_a_segment_is_told(folder: Path, image: Volume, tmp_path: Path) -> None:
    """Names of segments and structures are free text, which may be anything, so no error repeats them."""
    file = edited(folder, tmp_path / "seg.dcm", ["DOE^JOHN"] * 5)
    with pytest.raises(MedlightError) as caught:
        read_label(file, image, [Label(9, "liver")])
    assert "DOE" not in str(caught.value)


def with_meta(image: Volume, **meta: object) -> Volume:
    return Volume(image.array, image.affine, image.channels, meta)


def test_a_segmentation_of_another_series_is_refused(folder: Path, image: Volume) -> None:
    """By digests in the image's meta: the same series, or the same frame of reference, must be referred to."""
    dataset = pydicom.dcmread(folder / "liver.dcm")
    series = dataset.ReferencedSeriesSequence[0].SeriesInstanceUID
    own = origin(series, "1.2.3")
    assert read_label(folder / "liver.dcm", with_meta(image, origin=own)).array.any()
    near = origin("1.2.3", dataset.FrameOfReferenceUID)
    assert read_label(folder / "liver.dcm", with_meta(image, origin=near)).array.any()
    assert read_label(folder / "liver.dcm", with_meta(image, origin=origin("1.2.3", ""))).array.any()
    with pytest.raises(MedlightError, match=r"liver.dcm: refers to another series in another frame of reference"):
        read_label(folder / "liver.dcm", with_meta(image, origin=origin("1.2.3", "1.2.4")))


def test_the_image_itself_says_where_it_is_from(folder: Path) -> None:
    scan = read(folder / "ct-3slice")
    found = read_label(folder / "liver.dcm", scan, [Label(1, "liver")])
    assert np.array_equal(found.array[0], reference(folder, "liver_seg.nrrd"))
    series = pydicom.dcmread(folder / "ct-3slice" / "01.dcm", stop_before_pixels=True)
    assert scan.meta["origin"] == origin(series.SeriesInstanceUID, series.FrameOfReferenceUID)
    assert series.SeriesInstanceUID not in str(scan.meta)


def test_slices_that_were_made_up_have_no_label(folder: Path, image: Volume) -> None:
    mended = with_meta(image, mended=["gap: 1 missing slices interpolated, 3 in all"])
    with pytest.raises(MedlightError, match=r"the image's are resampled \(gap: 1 missing slices interpolated"):
        read_label(folder / "liver.dcm", mended)


def test_a_part_of_a_series_has_its_part_of_the_segments(folder: Path, image: Volume) -> None:
    part = Volume(image.array[..., :2], image.affine, meta={"mended": ["gap: cut into 2 volumes"]})
    found = read_label(folder / "liver.dcm", part)
    assert np.array_equal(found.array[0], reference(folder, "liver_seg.nrrd")[..., :2])
    with pytest.raises(MedlightError, match="outside the image"):
        read_label(folder / "liver.dcm", Volume(part.array, part.affine))
