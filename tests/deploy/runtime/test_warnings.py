"""What was forced is told by every file that is written, whatever the scan came as; nibabel and Pillow read it."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk  # noqa: N813
from PIL import Image

from medlight.deploy.bundle import Bundle
from medlight.deploy.registered import RegisteredBundle, columns
from medlight.deploy.registry import signature
from medlight.deploy.runtime import Predictor
from medlight.deploy.runtime.files import predict_item
from medlight.deploy.runtime.journal import Item
from medlight.scans import read, write_nifti
from tests.data import fake_dicom

SAID = "forced: has voxels of 1x1x9 mm (RAS), but the bundle was trained on 0.8-1.2x0.8-1.2x1-3 mm"


def thick(folder: Path, kind: str, step: float = 9.0) -> Path:
    """A scan of slices that are too thick for the bundle, in one of the formats."""
    series = fake_dicom.write(fake_dicom.series(fake_dicom.Grid((20, 22, 12), (1.0, 1.0), step)), folder / "Doe^Jane")
    if kind == "dicom":
        return series
    write_nifti(read(series), folder / "scan.nii.gz")
    if kind == "nifti":
        return folder / "scan.nii.gz"
    sitk.WriteImage(sitk.ReadImage(str(folder / "scan.nii.gz")), str(folder / f"scan.{kind}"))
    return folder / f"scan.{kind}"


def described(file: Path) -> str:
    text: bytes = nib.load(file).header["descrip"].item()
    return text.decode("ascii")


@pytest.mark.parametrize("kind", ["nifti", "dicom", "nrrd", "mha"])
def test_every_file_says_what_was_forced(ct_bundle: Bundle, tmp_path: Path, kind: str) -> None:
    predictor, out = Predictor(ct_bundle, threads=1), tmp_path / "out"
    item = Item("one", {"image": thick(tmp_path, kind)}, out / "one.nii.gz")
    result = predict_item(predictor, item, force=True, probabilities=True)
    assert result["warnings"] == [SAID]
    for name in ("one.nii.gz", "one_probabilities.nii.gz"):
        assert described(out / name) == f"{SAID[:76]}..."
    with Image.open(out / "one.png") as picture:
        assert picture.text == {"Warning": SAID}


@pytest.mark.parametrize("kind", ["nifti", "dicom"])
def test_nothing_to_warn_of_leaves_no_note(ct_bundle: Bundle, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    item = Item("one", {"image": thick(tmp_path, kind, 2.5)}, out / "one.nii.gz")
    assert predict_item(Predictor(ct_bundle, threads=1), item, force=True)["warnings"] == []
    assert described(out / "one.nii.gz") == ""
    with Image.open(out / "one.png") as picture:
        assert picture.text == {}


def test_a_registered_model_warns_in_its_table_and_its_files(ct_bundle: Bundle, tmp_path: Path) -> None:
    rows = [{"image": str(thick(tmp_path / "bad", "nifti"))}, {"image": str(thick(tmp_path / "good", "nifti", 2.5))}]
    table = pd.DataFrame([rows[0], {**rows[1], "id": "good"}])
    refused = RegisteredBundle(ct_bundle.root).predict(table, {"output": str(tmp_path / "out")})
    assert "trained on 0.8-1.2x0.8-1.2x1-3 mm" in refused["error"][0]
    assert list(refused["warnings"]) == ["", ""]
    found = RegisteredBundle(ct_bundle.root).predict(table, {"output": str(tmp_path / "out"), "force": True})
    assert list(found["warnings"]) == [SAID, ""]
    assert list(found["error"]) == ["", ""]
    assert described(Path(found["label_map"][0])).startswith("forced: has voxels of 1x1x9 mm")
    assert described(Path(found["label_map"][1])) == ""
    assert list(found.columns) == columns(ct_bundle) == signature(ct_bundle).outputs.input_names()


def test_a_registered_classifier_warns_in_its_table(classifier: Bundle, tmp_path: Path) -> None:
    Image.fromarray(np.full((70, 80), 7, np.uint8)).save(tmp_path / "blank.png")
    table = pd.DataFrame([{"image": str(tmp_path / "blank.png")}])
    found = RegisteredBundle(classifier.root).predict(table, {"output": str(tmp_path / "out"), "force": True})
    assert list(found.columns) == ["id", "no finding", "finding", "warnings", "error"]
    assert found["warnings"][0].startswith("forced: image has one value everywhere")
