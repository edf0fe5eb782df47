"""A DICOM series in, a DICOM-SEG or a report out: read again by pydicom and highdicom, which share no code with us."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom import Dataset

from medlight.deploy.bundle import Bundle
from medlight.deploy.runtime import Predictor
from medlight.deploy.runtime.clinic import predict_series
from medlight.errors import MedlightError
from medlight.scans import read
from medlight.scans.dicom.survey import survey
from tests.data import fake_dicom
from tests.deploy.runtime.bundles import bundle, written
from tests.deploy.runtime.conftest import GRID


def frames_of(seg: Path, sources: list[Dataset]) -> np.ndarray:
    """Label maps of the source images, ``(N, rows, columns)``, in their order; by highdicom."""
    found = highdicom.seg.segread(seg).get_pixels_by_source_instance(
        [source.SOPInstanceUID for source in sources],
        combine_segments=True,
        assert_missing_frames_are_empty=True,
        ignore_spatial_locations=True,
    )
    return np.asarray(found)


def sources_of(series: Path) -> list[Dataset]:
    return [pydicom.dcmread(file) for file in sorted(series.rglob("*")) if file.is_file()]


def on_source(array: np.ndarray, affine: np.ndarray, source: Dataset) -> np.ndarray:
    """The slice of a label map ``(I, J, K)`` that lies on a source image, pixel by pixel from its own header."""
    along_row, along_column = np.reshape(np.array(source.ImageOrientationPatient, float), (2, 3))
    between_rows, between_columns = map(float, source.PixelSpacing)
    rows, columns = np.indices((source.Rows, source.Columns))
    lps = np.array(source.ImagePositionPatient, float) + (
        columns[..., None] * between_columns * along_row + rows[..., None] * between_rows * along_column
    )
    ras = lps * [-1, -1, 1]
    index = np.rint((ras - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T).astype(int)
    return array[tuple(np.moveaxis(index, -1, 0))]


def check_against_label_map(seg: Path, series: Path, predictor: Predictor) -> Dataset:
    label = predictor.predict(read(series)).label
    assert label is not None
    assert len(np.unique(label.array)) > 1
    sources = sources_of(series)
    frames = frames_of(seg, sources)
    for frame, source in zip(frames, sources, strict=True):
        np.testing.assert_array_equal(frame, on_source(label.array[0], label.affine, source))
    made = pydicom.dcmread(seg)
    assert made.StudyInstanceUID == sources[0].StudyInstanceUID
    assert made.FrameOfReferenceUID == sources[0].get("FrameOfReferenceUID", made.FrameOfReferenceUID)
    return made


@pytest.mark.parametrize("orientation", ["AXIAL", "CORONAL", "OBLIQUE"])
def test_a_segmentation(ct_bundle: Bundle, tmp_path: Path, orientation: str) -> None:
    grid = fake_dicom.Grid(GRID.shape, GRID.spacing, GRID.step, getattr(fake_dicom, orientation))
    series = fake_dicom.write(fake_dicom.series(grid), tmp_path / "Doe^Jane")
    predictor = Predictor(ct_bundle, threads=1)
    result = predict_series(predictor, series, tmp_path / "out", force=True)
    name = result["name"]
    assert result["files"] == [f"{name}.dcm", f"{name}.png"]
    assert {file.name for file in (tmp_path / "out").iterdir()} == set(result["files"])
    made = check_against_label_map(tmp_path / "out" / f"{name}.dcm", series, predictor)
    assert [segment.SegmentLabel for segment in made.SegmentSequence] == ["label 1", "label 2"]
    frames = frames_of(tmp_path / "out" / f"{name}.dcm", sources_of(series))
    for value in (1, 2):
        expected = (frames == value).sum() * np.prod(grid.spacing) * grid.step / 1000
        assert result["volumes_ml"][f"label {value}"] == pytest.approx(expected, rel=1e-4)
    kept = json.dumps(result)
    assert not any(secret in kept for secret in fake_dicom.SECRETS)


def test_nothing_to_warn_of_leaves_no_comment(ct_bundle: Bundle, series: Path, tmp_path: Path) -> None:
    result = predict_series(Predictor(ct_bundle, threads=1), series, tmp_path / "out")
    made = pydicom.dcmread(tmp_path / "out" / result["files"][0])
    assert result["warnings"] == []
    assert "ImageComments" not in made


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("modality", "is MR, but the bundle was trained on CT"),
        ("spacing", "has voxels of 1x1x9 mm (RAS), but the bundle was trained on 0.8-1.2x0.8-1.2x1-3 mm"),
        ("gap", "gap: "),
    ],
)
def test_what_does_not_fit_is_refused_or_forced_with_a_warning(
    ct_bundle: Bundle, tmp_path: Path, kind: str, said: str
) -> None:
    grid = fake_dicom.Grid((20, 22, 12), (1.0, 1.0), 9.0 if kind == "spacing" else 2.5)
    planes = fake_dicom.series(grid, modality="MR" if kind == "modality" else "CT")
    series = fake_dicom.write(fake_dicom.without(planes, 5) if kind == "gap" else planes, tmp_path / "Doe^Jane")
    predictor = Predictor(ct_bundle, threads=1)
    with pytest.raises(MedlightError) as refused:
        predict_series(predictor, series, tmp_path / "out")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "force" in str(refused.value) or kind == "gap"
    assert not list((tmp_path / "out").glob("*"))
    result = predict_series(predictor, series, tmp_path / "out", force=True)
    (warning,) = result["warnings"]
    assert said in warning
    made = pydicom.dcmread(tmp_path / "out" / result["files"][0])
    assert made.ImageComments == warning
    assert "Image Comments" in made.ContentDescription
    assert not any(secret in warning for secret in fake_dicom.SECRETS)


def test_what_can_not_be_run_is_refused_by_force_too(ct_bundle: Bundle, tmp_path: Path) -> None:
    predictor = Predictor(ct_bundle, threads=1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MedlightError, match="holds no DICOM object"):
        predict_series(predictor, tmp_path / "empty", tmp_path / "out", force=True)
    fourth = fake_dicom.write(fake_dicom.by_time(3, grid=GRID, modality="CT"), tmp_path / "4d")
    with pytest.raises(MedlightError, match="has 3 channels, but the bundle was trained on 1"):
        predict_series(predictor, fourth, tmp_path / "out", force=True)


def test_old_bundles_that_tell_nothing_of_their_scans_take_all(tmp_path: Path) -> None:
    old = written(tmp_path / "old", bundle(3, [8, 8, 8]))
    assert "modalities" not in old.data
    series = fake_dicom.write(fake_dicom.series(modality="MR"), tmp_path / "mr")
    assert predict_series(Predictor(old, threads=1), series, tmp_path / "out")["warnings"] == []


def test_a_stack_among_others_is_referred_to(ct_bundle: Bundle, tmp_path: Path) -> None:
    """Two series in one folder: the segmentation of one names none of the other's images."""
    one, other = fake_dicom.series(GRID), fake_dicom.series(GRID, channel=1, series="other")
    folder = fake_dicom.write([*one, *other], tmp_path / "both")
    predictor = Predictor(ct_bundle, threads=1)
    for stack in survey([folder]).stacks:
        result = predict_series(predictor, stack, tmp_path / "out")
        made = pydicom.dcmread(tmp_path / "out" / result["files"][0])
        (referenced,) = made.ReferencedSeriesSequence
        assert referenced.SeriesInstanceUID == stack.series_uid
        uids = {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence}
        assert uids <= {frame.sop_uid for frame in stack.frames}
    assert len(list((tmp_path / "out").glob("*.dcm"))) == 2


def test_a_classification_is_a_report_of_its_images(classifier: Bundle, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4000, (70, 80)).astype(np.uint16)
    film = fake_dicom.instance(values, "DX", PixelSpacing=[0.2, 0.2])
    fake_dicom.save(film, tmp_path / "Doe^Jane.dcm")
    predictor = Predictor(classifier, threads=1)
    result = predict_series(predictor, tmp_path / "Doe^Jane.dcm", tmp_path / "out")
    assert sum(result["probabilities"].values()) == pytest.approx(1)
    name, picture = result["files"]
    assert picture == f"{result['name']}.png"
    text = (tmp_path / "out" / name).read_text()
    assert not any(secret in text for secret in fake_dicom.SECRETS)
    made = Dataset.from_json(text)
    assert (made.Modality, made.ContentTemplateSequence[0].TemplateIdentifier) == ("SR", "1500")
    library, measured = made.ContentSequence
    (reference,) = library.ContentSequence[0].ReferencedSOPSequence
    assert (reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID) == (
        film.SOPClassUID,
        film.SOPInstanceUID,
    )
    told = {}
    for group in measured.ContentSequence:
        finding, number = group.ContentSequence
        (value,) = number.MeasuredValueSequence
        assert value.MeasurementUnitsCodeSequence[0].CodeValue == "%"
        assert finding.ConceptNameCodeSequence[0].CodeMeaning == "Finding"
        told[finding.ConceptCodeSequence[0].CodeMeaning] = float(value.NumericValue) / 100
    assert told == pytest.approx(result["probabilities"], abs=1e-6)
    assert film.SOPInstanceUID not in json.dumps(result)


@pytest.mark.parametrize("folder", ["dicom/anatomical/001", "dicom/datalad_structural/dicoms"])
def test_real_series(data_root: Path, tmp_path: Path, folder: str) -> None:
    series = data_root / folder
    scan = read(series)
    low, high = np.percentile(scan.array, (20, 99.9)).tolist()
    window = [{"class_path": "medlight.prepare.Window", "init_args": {"low": low, "high": high}}]
    made = written(tmp_path / "bundle", bundle(4, [64, 64, 32], preparation={"spacing": [3.0] * 3}, normalise=window))
    predictor = Predictor(made, threads=1)
    result = predict_series(predictor, series, tmp_path / "out")
    check_against_label_map(tmp_path / "out" / result["files"][0], series, predictor)


def test_from_dicom_to_dicom_with_no_torch(ct_bundle: Bundle, series: Path, tmp_path: Path) -> None:
    """What an edge machine has: numpy, scipy, DICOM's packages, and a runtime."""
    code = """
import sys
from medlight.cli.main import main
code = main(["predict", *sys.argv[1:], "--threads", "1"])
heavy = {"torch", "monai", "lightning", "mlflow", "torchio", "optuna", "pandas", "sklearn"} & set(sys.modules)
sys.exit(code or ", ".join(sorted(heavy)) or 0)
"""
    words = [sys.executable, "-c", code, ct_bundle.root, series, tmp_path / "out"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").glob("case-*.dcm"))) == 1
