"""dcmqi, which shares no code with us: it reads the segmentations that we write, and we those that it writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813

from medlight.prepare.case import Label
from medlight.scans import Volume
from medlight.scans.dicom.load import read_dicom
from medlight.scans.dicom.mend import Mends
from medlight.scans.dicom_seg import read_seg, write_seg
from medlight.scans.labels import read_label
from medlight.scans.regions import Grid
from tests.data import fake_dicom as fake
from tests.scans.dicom import peers

LABELS = [
    Label(1, "liver", "#AA3311", ("10200004", "SCT", "Liver")),
    Label(2, "tumour", None, ("108369006", "SCT", "Neoplasm")),
    Label(3, "kidney"),
]
SOURCES = {
    "axial": fake.series(),
    "down": fake.series(fake.Grid(step=-2.5)),
    "sagittal": fake.series(fake.Grid(orientation=fake.SAGITTAL)),
    "coronal": fake.series(fake.Grid(orientation=fake.CORONAL)),
    "oblique": fake.series(fake.Grid(orientation=fake.OBLIQUE)),
    "oblique-down": fake.series(fake.Grid(orientation=fake.OBLIQUE, step=-2.5)),
    "mr": fake.series(modality="MR"),
    "enhanced": fake.enhanced(fake.Grid(orientation=fake.OBLIQUE)),
    "mosaic": fake.mosaic(fake.Grid((10, 12, 7), orientation=fake.OBLIQUE)),
}


def dcmqi(name: str, *arguments: object) -> str:
    """Run one of dcmqi's programs; what it prints."""
    command = [Path(sys.executable).with_name(name), *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def mask_of(image: Volume, values: int = 3, empty: tuple[int, ...] = (0, 2), seed: int = 0) -> Volume:
    """A random label map on an image's grid, with slices where nothing is drawn."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(1, values + 1, image.shape) * (rng.random(image.shape) < 0.3)
    drawn[..., list(empty)] = 0
    return Volume(drawn[None].astype(np.uint8), image.affine)


def read_by_dcmqi(seg: Path, image: Volume, out: Path) -> np.ndarray:
    """dcmqi's reading, each of its voxels looked up in the image's grid, ``(I, J, K)``."""
    out.mkdir()
    dcmqi("segimage2itkimage", "--inputDICOM", seg, "--outputDirectory", out, "--mergeSegments")
    (file,) = out.glob("*.nrrd")
    theirs = peers.of_itk(sitk.ReadImage(file))
    index = np.argwhere(theirs.array[0])
    points = index @ theirs.affine[:3, :3].T + theirs.affine[:3, 3]
    at = (points - image.affine[:3, 3]) @ np.linalg.inv(image.affine[:3, :3]).T
    assert np.abs(at - np.rint(at)).max(initial=0) < 1e-3
    found = np.zeros(image.shape, np.uint16)
    found[tuple(np.rint(at).astype(int).T)] = theirs.array[0][tuple(index.T)]
    return found


def write_by_dcmqi(files: list[Path], values: list[list[int]], source: Path, out: Path, kind: str) -> Path:
    """A segmentation that dcmqi makes of label maps that ITK reads; values: the segments of each file."""
    code = {"CodeValue": "85756007", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Tissue"}
    segment = {
        "SegmentAlgorithmType": "MANUAL",
        "SegmentedPropertyCategoryCodeSequence": code,
        "SegmentedPropertyTypeCodeSequence": code,
        "recommendedDisplayRGBValue": [221, 130, 101],
    }
    attributes = [[{**segment, "labelID": v, "SegmentLabel": f"part {v}"} for v in listed] for listed in values]
    said = {"ContentCreatorName": "Reader1", "SeriesDescription": "Segmentation", "segmentAttributes": attributes}
    metadata = out.with_suffix(".json")
    metadata.write_text(json.dumps(said))
    listed = ["--inputImageList", ",".join(map(str, files)), "--inputDICOMDirectory", source, "--outputDICOM", out]
    options = ["--segmentationType", kind, "--inputMetadata", metadata, "--useLabelIDAsSegmentNumber"]
    dcmqi("itkimage2segimage", *listed, *options)
    return out


def nrrd_of(mask: Volume, file: Path) -> Path:
    """A label map written by ITK."""
    image = sitk.GetImageFromArray(mask.array[0].T)
    lps = peers.LPS_TO_RAS @ mask.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    sitk.WriteImage(image, file)
    return file


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
@pytest.mark.parametrize("name", SOURCES)
def test_it_reads_what_we_write(tmp_path: Path, name: str, kind: str) -> None:
    source = fake.write(SOURCES[name], tmp_path / "source")
    image = read_dicom(source)
    mask = mask_of(image)
    if kind == "labelmap":
        mask = Volume(np.array([0, 3, 7, 40], np.uint8)[mask.array], mask.affine)
    write_seg(mask, source, tmp_path / "seg.dcm", LABELS)
    assert pydicom.dcmread(tmp_path / "seg.dcm").SegmentationType == kind.upper()
    assert np.array_equal(read_by_dcmqi(tmp_path / "seg.dcm", image, tmp_path / "out"), mask.array[0])


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
@pytest.mark.parametrize("name", [name for name in SOURCES if name != "enhanced"])
def test_we_read_what_it_writes(tmp_path: Path, name: str, kind: str) -> None:
    """Of enhanced objects it makes none, its own test data neither: it asks each object for one position."""
    source = fake.write(SOURCES[name], tmp_path / "source")
    image = read_dicom(source)
    mask = mask_of(image)
    values = [1, 2, 3]
    if kind == "labelmap":
        mask, values = Volume(np.array([0, 3, 7, 40], np.uint8)[mask.array], mask.affine), [3, 7, 40]
    file = nrrd_of(mask, tmp_path / "mask.nrrd")
    seg = write_by_dcmqi([file], [values], source, tmp_path / "seg.dcm", kind)
    labels = [Label(value, f"part {value}") for value in values]
    for drawn in (labels, ()):
        assert np.array_equal(read_label(seg, image, drawn).array, mask.array)


@pytest.mark.parametrize("empty", [(0, 1, 2, 4, 5), (0, 1, 3, 4), (0, 1, 2, 3, 4, 5)])
def test_frames_left_out_are_no_hindrance(tmp_path: Path, empty: tuple[int, ...]) -> None:
    """One frame alone, two apart, none."""
    source = fake.write(fake.series(), tmp_path / "source")
    image = read_dicom(source)
    mask = mask_of(image, empty=empty)
    write_seg(mask, source, tmp_path / "seg.dcm", LABELS)
    assert np.array_equal(read_by_dcmqi(tmp_path / "seg.dcm", image, tmp_path / "out"), mask.array[0])


def test_values_above_255_are_read(tmp_path: Path) -> None:
    source = fake.write(fake.series(), tmp_path / "source")
    image = read_dicom(source)
    mask = Volume(np.array([0, 3, 700, 40000], np.uint16)[mask_of(image).array], image.affine)
    write_seg(mask, source, tmp_path / "seg.dcm", LABELS)
    assert np.array_equal(read_by_dcmqi(tmp_path / "seg.dcm", image, tmp_path / "out"), mask.array[0])


@pytest.mark.parametrize(
    ("datasets", "mends"),
    [
        (fake.series(fake.Grid(degrees=15)), Mends(tilt="deskew")),
        (fake.without(fake.series(fake.Grid((10, 12, 8))), 3), Mends(gap="interpolate")),
    ],
    ids=["tilt", "gap"],
)
def test_a_mask_of_a_mended_series_lies_where_the_mended_is(tmp_path: Path, datasets: list, mends: Mends) -> None:
    source = fake.write(datasets, tmp_path / "source")
    image = read_dicom(source, mends)
    mask = mask_of(image)
    write_seg(mask, source, tmp_path / "seg.dcm", LABELS)
    assert np.array_equal(read_by_dcmqi(tmp_path / "seg.dcm", image, tmp_path / "out"), mask.array[0])


def test_segments_that_overlap_are_read(tmp_path: Path) -> None:
    source = fake.write(fake.series(), tmp_path / "source")
    image = read_dicom(source)
    masks = [mask_of(image, 1, seed=seed) for seed in (1, 2)]
    assert (masks[0].array & masks[1].array).any()
    files = [nrrd_of(Volume(m.array * v, m.affine), tmp_path / f"{v}.nrrd") for v, m in enumerate(masks, 1)]
    seg = write_by_dcmqi(files, [[1], [2]], source, tmp_path / "seg.dcm", "binary")
    found = read_seg(seg, Grid(image.shape, image.affine)).segments
    assert [segment.number for segment in found] == [1, 2]
    for segment, mask in zip(found, masks, strict=True):
        assert np.array_equal(segment.mask, mask.array[0] > 0)


def test_a_real_liver_goes_both_ways(data_root: Path, tmp_path: Path) -> None:
    folder = data_root / "dicom/dcmqi/segmentations"
    image = read_dicom(folder / "ct-3slice")
    liver = read_label(folder / "liver.dcm", image)
    assert liver.array.sum() == 107098
    write_seg(liver, folder / "ct-3slice", tmp_path / "ours.dcm", LABELS[:1])
    assert np.array_equal(read_by_dcmqi(tmp_path / "ours.dcm", image, tmp_path / "out"), liver.array[0])
    file = nrrd_of(liver, tmp_path / "liver.nrrd")
    theirs = write_by_dcmqi([file], [[1]], folder / "ct-3slice", tmp_path / "theirs.dcm", "binary")
    assert np.array_equal(read_label(theirs, image, LABELS[:1]).array, liver.array)
