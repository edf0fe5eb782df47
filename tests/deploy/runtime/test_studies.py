"""`medlight predict` on trees of studies: each volume by itself, resumable, the bad ones named."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom import Dataset

from medlight.cli.main import main
from medlight.deploy.bundle import Bundle
from medlight.deploy.runtime.checked import named
from medlight.deploy.runtime.journal import Item, content_of
from medlight.deploy.runtime.studies import Asked, items_of
from medlight.deploy.runtime.summary import table
from medlight.errors import MedlightError
from medlight.scans import read, write_nifti
from medlight.scans.dicom.survey import survey
from medlight.scans.files import nameless
from tests.data import fake_dicom
from tests.deploy.runtime.conftest import GRID

SHIFTED = fake_dicom.Grid(GRID.shape, GRID.spacing, GRID.step, origin=(-20.0, -30.5, 900.25))


def run(*words: object) -> int:
    return main(["predict", *map(str, words), "--threads", "1"])


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two patients: one with two CT series in one folder, a localizer and a report; one with a CT and an MR."""
    root = tmp_path / "studies"
    jane = root / "Doe^Jane" / "study"
    localizer = fake_dicom.plane(GRID, 0, series="scout", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    report = fake_dicom.instance(None, "SR", series="report")
    fake_dicom.write([*fake_dicom.series(GRID), *fake_dicom.series(SHIFTED, series="two", channel=1)], jane)
    for number, extra in enumerate((localizer, report)):
        fake_dicom.save(extra, jane / f"extra{number}.dcm")
    fake_dicom.write(fake_dicom.series(GRID, series="three", channel=2), root / "Roe^Richard" / "a" / "ct")
    fake_dicom.write(fake_dicom.series(GRID, series="four", modality="MR"), root / "Roe^Richard" / "a" / "mr")
    return root


def test_each_volume_of_a_tree_and_the_bad_ones_named(
    ct_bundle: Bundle, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(ct_bundle.root, tree, out) == 1
    said = capsys.readouterr()
    assert "3 predicted" in said.out
    (line,) = said.err.splitlines()
    assert line.startswith(f"not predicted: {tree / 'Roe^Richard' / 'a' / 'mr'} (mr-")
    assert "is MR, but the bundle was trained on CT; --force" in line
    segs = [pydicom.dcmread(file) for file in sorted(out.glob("*.dcm"))]
    referenced = {seg.ReferencedSeriesSequence[0].SeriesInstanceUID for seg in segs}
    assert referenced == {fake_dicom.uid("series", name) for name in ("one", "two", "three")}
    assert len(list(out.glob("*.png"))) == 3
    rows = list(csv.DictReader((out / "summary.csv").open()))
    assert [row["status"] for row in rows] == ["predicted"] * 3 + ["failed"]
    summary = json.loads((out / "summary.json").read_text())
    for row, case in zip(rows, summary["cases"], strict=False):
        assert float(row["label 1 (ml)"]) == pytest.approx(case["volumes_ml"]["label 1"])
        assert row["file"] == f"{case['name']}.dcm"
    kept = [file for file in out.iterdir() if file.suffix in (".json", ".csv")]
    assert not any(secret in file.read_text() for file in kept for secret in (*fake_dicom.SECRETS, "Roe", "Richard"))
    before = {file: file.stat().st_mtime_ns for file in out.glob("case-*")}
    assert run(ct_bundle.root, tree, out) == 1
    assert "3 predicted (3 of them before" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in out.glob("case-*")} == before
    assert run(ct_bundle.root, tree, out, "--force") == 0
    said = capsys.readouterr()
    assert "4 predicted" in said.out
    assert "forced: is MR" in said.err


def test_a_tree_goes_on_where_it_was_cut(
    ct_bundle: Bundle, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import medlight.deploy.runtime.batch as batch

    real, calls = batch.predict_item, []

    def cut(*given: object, **options: object) -> object:
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(batch, "predict_item", cut)
    assert run(ct_bundle.root, tree, tmp_path / "out") == 1
    assert "interrupted" in capsys.readouterr().err
    monkeypatch.setattr(batch, "predict_item", real)
    capsys.readouterr()
    run(ct_bundle.root, tree, tmp_path / "out")
    assert "3 predicted (1 of them before" in capsys.readouterr().out


def test_a_fault_of_the_program_is_one_scans(
    ct_bundle: Bundle, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import medlight.deploy.runtime.files as files

    real = files.write_seg

    def broken(mask: object, source: object, *given: object, **options: object) -> None:
        if getattr(source, "modality", "") and source.series_uid == fake_dicom.uid("series", "two"):  # type: ignore[attr-defined]
            raise ValueError("Doe^Jane^Zyzzyva is not a name")
        real(mask, source, *given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(files, "write_seg", broken)
    assert run(ct_bundle.root, tree, tmp_path / "out", "--force") == 1
    said = capsys.readouterr()
    assert "3 predicted" in said.out
    assert re.search(r"ValueError at .*test_studies\.py:", said.err)
    assert "Zyzzyva" not in said.err + (tmp_path / "out" / "summary.json").read_text()


def test_a_file_that_can_not_be_read_is_one_scans(
    ct_bundle: Bundle, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever it lies: in a folder of one volume, or of several; what is kept does not name it."""
    fake_dicom.write(fake_dicom.series(SHIFTED, series="five"), tree / "Poe^Edgar")
    for folder in ("Poe^Edgar", "Doe^Jane/study"):
        (tree / folder / "Allan_Poe.dcm").symlink_to("/proc/self/mem")  # opens, and gives an I/O error
    (tree / "Poe^Edgar" / "Allan_notes").symlink_to("/proc/self/mem")
    out = tmp_path / "out"
    assert run(ct_bundle.root, tree, out) == 1
    said = capsys.readouterr()
    assert "4 predicted" in said.out
    lines = [line for line in said.err.splitlines() if "can't be " in line]
    assert len(lines) == 3
    assert all("Allan_" in line and "(Input/output error)" in line for line in lines)
    kept = "".join(file.read_text() for file in out.iterdir() if file.suffix in (".json", ".csv"))
    assert kept.count("Input/output error") == 6  # in summary.json and summary.csv
    assert not any(secret in kept for secret in ("Poe", "Allan", "Doe", "Roe"))


def test_what_is_kept_of_a_folder_names_no_file_in_it(tmp_path: Path) -> None:
    series = fake_dicom.write(fake_dicom.series(GRID), tmp_path / "Doe^Jane")
    (series / "Jane 01.dcm").symlink_to("/proc/self/mem")
    with pytest.raises(MedlightError) as refused:
        content_of(series)
    item = Item("unreadable", {"image": series}, tmp_path / "x.dcm", fault=str(refused.value))
    assert str(series / "Jane 01.dcm") in item.fault
    assert item.nameless(item.fault) == "can't be read (Input/output error); check its permissions"


def test_what_is_closed_to_a_user_is_named(ct_bundle: Bundle, tree: Path, tmp_path: Path) -> None:
    """A file, and a folder with a whole study; to root nothing is closed that keeps its capabilities."""
    (tree / "Doe^Jane" / "study" / "extra0.dcm").chmod(0)
    closed = fake_dicom.write(fake_dicom.series(GRID, series="six"), tree / "Poe^Edgar" / "study")
    closed.chmod(0)
    code = "import sys; from medlight.cli.main import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", code, "predict", ct_bundle.root, tree, tmp_path / "out", "--threads", "1"]
    less = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    done = subprocess.run([*less, *map(str, words)], capture_output=True, text=True, check=False)
    closed.chmod(0o755)
    assert done.returncode == 1, done.stderr
    assert "3 predicted" in done.stdout
    file, folder = sorted(line for line in done.stderr.splitlines() if "Permission denied" in line)
    assert "extra0.dcm" in file
    assert "Poe^Edgar" in folder


def test_formats(ct_bundle: Bundle, series: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(ct_bundle.root, series, tmp_path / "a", "--format", "nifti") == 0
    assert run(ct_bundle.root, series, tmp_path / "b" / "seg.dcm") == 0
    assert run(ct_bundle.root, series, tmp_path / "c" / "seg.nii.gz") == 0
    (first,) = (tmp_path / "a").glob("*.nii.gz")
    both = [np.asarray(nib.load(file).dataobj) for file in (first, tmp_path / "c" / "seg.nii.gz")]
    np.testing.assert_array_equal(*both)
    assert pydicom.dcmread(tmp_path / "b" / "seg.dcm").Modality == "SEG"
    write_nifti(read(series), tmp_path / "scan.nii.gz")
    capsys.readouterr()
    for out, words, said in (
        ("d", ("--format", "dicom-seg"), "refers to DICOM images"),
        ("d.dcm", (), "refers to DICOM images"),
        ("d.nii.gz", ("--format", "dicom-seg"), "is no dicom-seg, as --format says"),
    ):
        assert run(ct_bundle.root, tmp_path / "scan.nii.gz", tmp_path / out, *words) == 2
        assert said in (error := capsys.readouterr().err)
        assert error.count("\n") == 1


def test_reports_of_a_classification(classifier: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "films"
    for number in range(2):
        values = np.random.default_rng(number).integers(0, 4000, (70, 80)).astype(np.uint16)
        film = fake_dicom.instance(values, "DX", series=f"film {number}", PixelSpacing=[0.2, 0.2])
        fake_dicom.save(film, folder / f"Doe^Jane {number}.dcm")
    assert run(classifier.root, folder, tmp_path / "out") == 0
    reports = [Dataset.from_json(file.read_text()) for file in (tmp_path / "out").glob("*_sr.json")]
    assert len(reports) == 2
    rows = list(csv.DictReader((tmp_path / "out" / "summary.csv").open()))
    assert all(float(row["finding (probability)"]) + float(row["no finding (probability)"]) > 0.999 for row in rows)
    assert [row["file"] for row in rows] == [f"{row['name']}_sr.json" for row in rows]
    assert "1.2.826" not in (tmp_path / "out" / "summary.json").read_text()


def test_real_studies(ct_bundle: Bundle, data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sound and failing series of one tree: each failing one is named with what is wrong."""
    tree = tmp_path / "tree"
    shutil.copytree(data_root / "dicom" / "failing", tree)
    shutil.copytree(data_root / "dicom" / "anatomical" / "001", tree / "sound")
    assert run(ct_bundle.root, tree, tmp_path / "out", "--force", "--on", "tilt=error") == 1
    said = capsys.readouterr()
    assert "2 predicted" in said.out  # the sound one, and the one whose missing slices are made up
    assert "warning case-" in said.err
    for verdict in ("tilt: ", "mixed-orientation: ", "not-a-volume: "):
        assert f": {verdict}" in said.err
    assert said.err.count("not predicted: ") == 4


def test_spreadsheets_take_no_cell_for_a_formula() -> None:
    cases = [{"name": "=cmd()", "files": [], "volumes_ml": {"a": 1.5, "b": None}}, {"name": "x", "files": ["x.dcm"]}]
    rows = list(csv.reader(table(cases, [{"name": "-", "error": "+1"}]).splitlines()))
    assert rows[0] == ["name", "status", "file", "a (ml)", "b (ml)", "warnings", "error"]
    assert rows[1][:5] == ["'=cmd()", "predicted", "", "1.5", ""]
    assert rows[3] == ["'-", "failed", "", "", "", "", "'+1"]


@pytest.mark.parametrize("folder", ["10", "mm", "gap", "slice", "CT"])
def test_words_of_a_reason_are_kept_whatever_a_folder_is_called(folder: str) -> None:
    reason = "gap: 10 mm between slice 3 and 4 of a CT; --on gap=interpolate mends it"
    assert nameless(f"{folder}: {reason}", Path(folder)) == reason
    assert nameless(f"/a/{folder}: {reason}", Path("/a") / folder) == reason
    assert nameless(f"{folder} (ct-1): {reason}", Path(folder)) == f"(ct-1): {reason}"


@pytest.mark.parametrize("name", ["Doe.nii.gz", "Doe^Jane", "smith.dcm", "19120623", "Anna"])
def test_names_are_not_kept(name: str) -> None:
    for text in (f"{name}: bad", f"/data/{name}: bad", f"two of {name} and {name}; bad", f"bad (see '{name}')"):
        assert name not in nameless(text, Path("/data") / name)


def test_series_of_one_zip_are_predicted_beside_it(tmp_path: Path, workdir: Path) -> None:
    both = [*fake_dicom.series(GRID), *fake_dicom.series(SHIFTED, series="two", channel=1)]
    archive = fake_dicom.zipped(fake_dicom.write(both, tmp_path / "jane"), workdir / "two.zip")
    items = items_of(Path(archive.name), Asked(Path("out")))
    assert len(items) == 2
    assert all(named(item.source).startswith("two.zip (") for item in items)


def test_what_is_kept_of_a_failure_names_no_file(tree: Path) -> None:
    (stack,) = (s for s in survey([tree]).stacks if s.modality == "MR")
    item = Item("x", {"image": stack}, tree / "x.dcm")
    file = stack.frames[3].place.path
    assert item.nameless(f"{file}: can't be read; look into {file.parent}") == "can't be read; look into"
