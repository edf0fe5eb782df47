"""Structures onto an image's grid: against Matplotlib on a phantom, against volumes that are known, and bad input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Outline
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from scipy.spatial.transform import Rotation

from medlight.errors import MedlightError
from medlight.prepare.case import Label
from medlight.scans import Volume
from medlight.scans.labels import read_label

TO_LPS = np.diag([-1.0, -1.0, 1.0])
Contours = dict[int, list[np.ndarray]]


def phantom(slices: int = 2, first: float = 60.0) -> Volume:
    """The grid of rt_utils/mock_data: 2 slices of a series of 5."""
    affine = np.diag([-0.488281, -0.488281, 5.0, 1.0])
    affine[:3, 3] = 125, 125, first
    return Volume(np.zeros((1, 512, 512, slices), np.int16), affine)


def write(path: Path, contours: Contours, names: dict[int, str] | None = None, kind: str = "CLOSED_PLANAR") -> Path:
    """Write an RTSTRUCT; contours: ``(N, 3)`` in RAS+ millimetres by structure."""
    dataset = FileDataset(str(path), {}, preamble=b"\0" * 128)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.Modality = "RTSTRUCT"
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    for number, drawn in contours.items():
        listed, roi = Dataset(), Dataset()
        listed.ROINumber, listed.ROIName = number, (names or {}).get(number, f"structure {number}")
        roi.ReferencedROINumber, roi.ContourSequence = number, []
        for points in drawn:
            contour = Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(points)
            contour.ContourData = [f"{value:.6g}" for value in (points @ TO_LPS).ravel()]
            roi.ContourSequence.append(contour)
        dataset.StructureSetROISequence.append(listed)
        dataset.ROIContourSequence.append(roi)
    dataset.save_as(path, enforce_file_format=True)
    return path


def square(low: float, high: float, k: float, image: Volume) -> np.ndarray:
    """A square in voxels ``low`` to ``high`` of slice ``k``, as points in RAS+ millimetres."""
    corners = np.array([(low, low, k), (high, low, k), (high, high, k), (low, high, k)], float)
    return corners @ image.affine[:3, :3].T + image.affine[:3, 3]


def box() -> Volume:
    affine = np.diag([-0.9, -0.9, 2.5, 1.0])
    affine[:3, 3] = 30, 40, -100
    return Volume(np.zeros((1, 40, 40, 12), np.int16), affine)


def test_the_phantoms_structure_equals_matplotlibs(data_root: Path) -> None:
    file = data_root / "dicom/rt_utils/mock_data/rt.dcm"
    image = phantom()
    found = read_label(file, image).array[0]
    centres = np.argwhere(np.ones((512, 512), bool)).astype(float)
    expected = np.zeros(image.shape, bool)
    for contour in pydicom.dcmread(file).ROIContourSequence[0].ContourSequence:
        points = np.array(contour.ContourData, float).reshape(-1, 3)
        outline = (points[:, :2] + 125) / 0.488281
        inside = Outline(np.vstack([outline, outline[:1]])).contains_points(centres).reshape(512, 512)
        expected[:, :, round((points[0, 2] - 60) / 5)] ^= inside
    assert np.array_equal(found, expected)
    assert found.sum() == 1443
    assert found.dtype == np.uint8


@pytest.mark.parametrize(
    "name", ["mock_data/invalid_reference_rt.dcm", "mock_data/non_existent_reference_rt.dcm", "empty/dummy_rt.dcm"]
)
def test_structures_of_images_that_are_not_there_are_refused(data_root: Path, name: str) -> None:
    """They are drawn on five slices of which two are there."""
    with pytest.raises(MedlightError, match=rf"{Path(name).name}: structure 1 goes on outside the image"):
        read_label(data_root / "dicom/rt_utils" / name, phantom())


def test_the_same_structures_are_read_on_the_whole_series(data_root: Path) -> None:
    file = data_root / "dicom/rt_utils/empty/dummy_rt.dcm"
    found = read_label(file, phantom(5)).array
    counts = {1: 3010 + 1966 + 484, 2: 1415 + 2282 + 1343, 3: 2747 + 1772 + 294, 4: 2419 + 4535 + 2244}
    assert {value: int((found == value).sum()) for value in counts} == counts
    two = read_label(file, phantom(5), [Label(2, "ROI-1"), Label(1, "roi 3")]).array
    assert np.array_equal(two, 2 * (found == 1) + (found == 3))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_a_circle_keeps_its_area_on_any_grid(
    tmp_path_factory: pytest.TempPathFactory, seed: int, oblique: bool
) -> None:
    rng = np.random.default_rng(seed)
    turn = Rotation.random(random_state=rng.integers(2**31)).as_matrix() if oblique else np.eye(3)
    affine = np.eye(4)
    spacing = rng.uniform(0.5, 1.5, 3)
    affine[:3, :3], affine[:3, 3] = turn * spacing, rng.uniform(-200, 200, 3)
    image = Volume(np.zeros((1, 64, 64, 5), np.int16), affine)
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    middle = rng.uniform(28, 34, 2)
    ring = np.stack([middle[0] + 20 * np.cos(angle), middle[1] + 18 * np.sin(angle), np.full(200, 2.0)], axis=1)
    file = write(tmp_path_factory.mktemp("rt") / "rt.dcm", {4: [ring @ affine[:3, :3].T + affine[:3, 3]]})
    found = read_label(file, image).array[0]
    assert set(np.unique(found)) == {0, 4}
    assert not found[:, :, [0, 1, 3, 4]].any()
    i, j = np.mgrid[:64, :64]
    inside = ((i - middle[0]) / 20) ** 2 + ((j - middle[1]) / 18) ** 2
    sure = np.abs(inside - 1) > 0.01
    assert np.array_equal((found[:, :, 2] > 0)[sure], (inside < 1)[sure])


@pytest.mark.parametrize("kind", ["CLOSED_PLANAR", "CLOSEDPLANAR_XOR"])
def test_a_contour_inside_another_is_a_hole(tmp_path: Path, kind: str) -> None:
    image = box()
    drawn = {1: [square(5, 25, 3, image), square(10, 20, 3, image)]}
    found = read_label(write(tmp_path / "a.dcm", drawn, kind=kind), image).array[0]
    assert found.sum() == 20 * 20 - 10 * 10
    assert not found[12:18, 12:18].any()


def test_a_contour_that_stands_twice_is_one(tmp_path: Path) -> None:
    image = box()
    drawn = {1: [square(5, 25, 3, image)] * 2}
    assert read_label(write(tmp_path / "a.dcm", drawn), image).array.sum() == 400


def test_an_image_stored_in_another_order_has_the_same_voxels_marked(tmp_path: Path) -> None:
    image = box()
    file = write(tmp_path / "a.dcm", {1: [square(4.5, 25.5, k, image) for k in (3, 4)]})
    found = read_label(file, image).array
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = 39
    turned = Volume(image.array[:, ::-1].transpose(0, 3, 1, 2), (image.affine @ flip)[:, [2, 0, 1, 3]])
    other = read_label(file, turned).array
    assert other.sum() == found.sum() == 2 * 21 * 21
    assert np.array_equal(other, found[:, ::-1].transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("k", "message"),
    [(3.5, r"structure 1 has a contour 1.2 mm from the nearest slice"), (3.3, "0.75 mm"), (12, "outside the image")],
)
def test_contours_between_slices_and_outside_are_named(tmp_path: Path, k: float, message: str) -> None:
    image = box()
    with pytest.raises(MedlightError, match=message):
        read_label(write(tmp_path / "a.dcm", {1: [square(5, 25, k, image)]}), image)


def test_contours_on_every_second_slice_are_named(tmp_path: Path) -> None:
    image = box()
    file = write(tmp_path / "a.dcm", {1: [square(5, 25, k, image) for k in (1, 3, 5)]})
    with pytest.raises(MedlightError, match=r"is drawn on slices 2, 4, 6, \.\.\. and on none between"):
        read_label(file, image)


def test_points_and_open_lines_have_no_area(tmp_path: Path) -> None:
    image = box()
    file = write(tmp_path / "a.dcm", {1: [square(5, 25, 3, image)]}, kind="OPEN_PLANAR")
    with pytest.raises(MedlightError, match="no structure has a closed contour"):
        read_label(file, image)


BREAKS = {
    "no ROIContourSequence": lambda d: d.pop("ROIContourSequence"),
    "no StructureSetROISequence": lambda d: d.pop("StructureSetROISequence"),
    "not listed": lambda d: setattr(d.ROIContourSequence[0], "ReferencedROINumber", 77),
    "no ReferencedROINumber": lambda d: d.ROIContourSequence[0].pop("ReferencedROINumber"),
    "not finite": lambda d: setattr(_contour(d), "ContourData", ["NaN"] * 12),
    "not finite or": lambda d: setattr(_contour(d), "ContourData", ["1e300"] * 12),
    "coordinates for 4 points": lambda d: setattr(_contour(d), "ContourData", ["1"] * 11),
    "coordinates for 1000000000 points": lambda d: setattr(_contour(d), "NumberOfContourPoints", 10**9),
    "no closed contour|has a closed contour": lambda d: setattr(d.ROIContourSequence[0], "ContourSequence", []),
}


def _contour(dataset: Dataset) -> Dataset:
    return dataset.ROIContourSequence[0].ContourSequence[0]


@pytest.mark.parametrize("message", BREAKS)
def test_broken_files_are_refused_by_name(tmp_path: Path, message: str) -> None:
    image = box()
    file = write(tmp_path / "broken.dcm", {1: [square(5, 25, 3, image)]})
    dataset = pydicom.dcmread(file)
    with pydicom.config.disable_value_validation():
        BREAKS[message](dataset)
        dataset.save_as(file)
    with pytest.raises(MedlightError, match=message) as caught:
        read_label(file, image)
    assert "broken.dcm" in str(caught.value)


def test_text_for_numbers_is_refused(tmp_path: Path) -> None:
    image = box()
    file = write(tmp_path / "broken.dcm", {1: [square(5, 25, 3, image)]})
    content = file.read_bytes()
    file.write_bytes(content.replace(b"\\", b"x", 3))
    with pytest.raises(
        MedlightError, match=r"broken.dcm: a contour of structure 1 has coordinates that are no numbers"
    ):
        read_label(file, image)


@pytest.mark.timeout(60)
def test_absurdly_many_points_end_soon(tmp_path: Path) -> None:
    """A zigzag that crosses every row of voxels a hundred thousand times."""
    affine = np.diag([-0.1, -0.1, 1.0, 1.0])
    image = Volume(np.broadcast_to(np.int16(0), (1, 9000, 9000, 1)), affine)
    zigzag = np.stack([np.linspace(0, -800, 100_000), np.tile([0.0, -899.0], 50_000), np.zeros(100_000)], axis=1)
    with pytest.raises(MedlightError, match="absurdly many points"):
        read_label(write(tmp_path / "a.dcm", {1: [zigzag]}), image)


@pytest.mark.timeout(60)
def test_absurdly_many_contours_end_soon(tmp_path: Path) -> None:
    """Two million items with nothing in them."""
    image = box()
    file = write(tmp_path / "bomb.dcm", {1: [square(5, 25, 3, image)]})
    dataset = pydicom.dcmread(file)
    del dataset.ROIContourSequence
    dataset.save_as(file)
    items = b"\xfe\xff\x00\xe0\x00\x00\x00\x00" * 2_000_000
    with file.open("ab") as stream:
        stream.write(b"\x06\x30\x39\x00SQ\0\0" + len(items).to_bytes(4, "little") + items)
    with pytest.raises(MedlightError, match=r"bomb.dcm: ROIContourSequence has absurdly many items"):
        read_label(file, image)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("count", [150, pytest.param(2000, marks=pytest.mark.slow)])
def test_mutants_are_read_or_refused(data_root: Path, tmp_path: Path, count: int) -> None:
    content = (data_root / "dicom/rt_utils/empty/dummy_rt.dcm").read_bytes()
    rng = np.random.default_rng(count)
    file, image = tmp_path / "mutant.dcm", phantom(5)
    refusals = []
    for _ in range(count):
        changed = bytearray(content)
        for _ in range(rng.integers(1, 6)):
            at = int(rng.integers(132, len(changed)))
            if rng.random() < 0.7:
                changed[at] = int(rng.integers(256))
            else:
                del changed[at : at + int(rng.integers(1, 60))]
        file.write_bytes(changed)
        try:
            found = read_label(file, image)
        except MedlightError as error:
            refusals.append(str(error))
        else:
            assert found.shape == image.shape
    assert refusals
    assert all("mutant.dcm" in text and len(text.splitlines()) == 1 for text in refusals)
