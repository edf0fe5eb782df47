"""`medlight predict`: files in, files out, nothing lost on the way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medlight.cli import machine
from medlight.cli.main import main
from medlight.deploy.export import export
from medlight.scans import Volume, write_nifti
from tests.compare.recorded import Recorder
from tests.data import fake
from tests.deploy.trained import Trained, classification, segmentation


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return segmentation(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def bundle(trained: Trained) -> str:
    return str(export(trained.checkpoint, trained.checkpoint.parent / "bundle", cases=None, threads=1).root)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    return fake.folders(tmp_path / "scans", 3, (20, 22, 12), spacing=(1, 1, 2.5), codes="LPS", seed=5)


def run(*words: str | Path) -> int:
    return main(["predict", *map(str, words), "--threads", "1"])


def test_outputs_have_the_inputs_geometry(bundle: str, scans: Path, tmp_path: Path) -> None:
    assert run(bundle, scans / "images", tmp_path / "out", "--probabilities") == 0
    for file in sorted((scans / "images").iterdir()):
        given, made = nib.load(file), nib.load(tmp_path / "out" / file.name)
        assert made.shape == given.shape
        assert made.get_data_dtype() == np.uint8
        np.testing.assert_allclose(made.affine, given.affine)
        assert set(np.unique(np.asarray(made.dataobj))) <= {0, 1, 2}
        name = file.name.removesuffix(".nii.gz")
        spread = nib.load(tmp_path / "out" / f"{name}_probabilities.nii.gz")
        assert spread.shape == (*given.shape, 3)
        agree = np.asarray(spread.dataobj).argmax(-1) == np.asarray(made.dataobj)
        assert agree.mean() > 0.999
        assert np.asarray(Image.open(tmp_path / "out" / f"{name}.png")).shape[0] >= 300


@pytest.mark.parametrize("kind", ["qform", "sform", "nifti2", "none", "microns"])
def test_headers_are_kept_as_far_as_they_are_geometry(bundle: str, scans: Path, tmp_path: Path, kind: str) -> None:
    """Readers differ in which of NIfTI's two affines they believe: both must come through."""
    source = nib.load(scans / "images" / "case_00.nii.gz")
    make = nib.Nifti2Image if kind == "nifti2" else nib.Nifti1Image
    given = make(np.asarray(source.dataobj), source.affine)
    given.header["descrip"] = b"Jane Doe"
    if kind == "qform":
        given.set_sform(None)
        given.set_qform(source.affine, 1)
    elif kind == "sform":
        sheared = source.affine.copy()
        sheared[0, 1] = 0.2
        given.set_qform(source.affine, 1)
        given.set_sform(sheared, 4)
    elif kind == "none":
        given.set_sform(None)
        given.set_qform(None)
    elif kind == "microns":
        given.header.set_xyzt_units("micron")
    nib.save(given, tmp_path / "scan.nii")
    assert run(bundle, tmp_path / "scan.nii", tmp_path / "out", *(["--force"] if kind == "microns" else [])) == 0
    given, made = nib.load(tmp_path / "scan.nii"), nib.load(tmp_path / "out" / "scan.nii.gz")
    assert type(made) is type(given)
    np.testing.assert_allclose(made.affine, given.affine, atol=1e-6)
    for which in ("get_sform", "get_qform"):
        (theirs, code), (ours, our_code) = getattr(given, which)(coded=True), getattr(made, which)(coded=True)
        assert code == our_code
        if theirs is not None:
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert made.header.get_xyzt_units()[0] == given.header.get_xyzt_units()[0]
    assert made.header.get_zooms() == pytest.approx(given.header.get_zooms())
    assert b"Jane" not in made.header.binaryblock


def test_dice_is_measured_and_written(
    bundle: str, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "figures.json"
    assert run(bundle, scans / "images", tmp_path / "out", "--truth", scans / "labels", "--json", target) == 0
    said = capsys.readouterr().out
    assert "onnxruntime" in said
    assert "case_00" in said
    figures = json.loads(target.read_text())
    for case in figures["cases"]:
        truth = np.asarray(nib.load(scans / "labels" / f"{case['name']}.nii.gz").dataobj)
        found = np.asarray(nib.load(tmp_path / "out" / f"{case['name']}.nii.gz").dataobj)
        for value, name in ((1, "one"), (2, "two")):
            both = 2 * ((truth == value) & (found == value)).sum() / ((truth == value).sum() + (found == value).sum())
            assert case["dice"][name] == pytest.approx(both)


def test_a_truth_that_can_not_be_used_does_not_stop_the_prediction(
    bundle: str, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_nifti(Volume(np.zeros((1, 3, 3, 3), np.uint8), np.eye(4)), scans / "labels" / "case_01.nii.gz")
    words = (bundle, scans / "images", tmp_path / "out", "--truth", scans / "labels", "--json", tmp_path / "o.json")
    assert run(*words) == 1
    said = capsys.readouterr()
    assert "case_01 is not compared with its truth: has the shape (3, 3, 3)" in said.err
    assert (tmp_path / "out" / "case_01.nii.gz").is_file()
    cases = {case["name"]: case for case in json.loads((tmp_path / "o.json").read_text())["cases"]}
    assert "dice" not in cases["case_01"]
    assert cases["case_00"]["dice"]


def test_a_bad_file_is_named_and_does_not_stop_the_others(
    bundle: str, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.spoil(scans, "case_01", "truncated")
    write_nifti(Volume(np.zeros((2, 20, 20, 8), np.float32), np.eye(4)), scans / "images" / "two_channels.nii.gz")
    assert run(bundle, scans / "images", tmp_path / "out") == 1
    said = capsys.readouterr()
    assert "case_01.nii.gz" in said.err
    assert "two_channels.nii.gz" in said.err
    assert "2 channels" in said.err
    assert "2 predicted" in said.out
    assert {f.name for f in (tmp_path / "out").glob("*.nii.gz")} == {"case_00.nii.gz", "case_02.nii.gz"}


def test_what_is_done_is_not_done_again(
    bundle: str, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(bundle, scans / "images", out) == 0
    before = (out / "case_00.nii.gz").stat().st_mtime_ns
    (out / "case_01.nii.gz").unlink()  # lost
    shutil.copy(scans / "images" / "case_00.nii.gz", scans / "images" / "case_02.nii.gz")  # changed
    capsys.readouterr()
    assert run(bundle, scans / "images", out) == 0
    assert "3 predicted (1 of them before: same files, same bundle)" in capsys.readouterr().out
    assert (out / "case_00.nii.gz").stat().st_mtime_ns == before
    assert (out / "case_01.nii.gz").is_file()
    assert run(bundle, scans / "images", out, "--truth", scans / "labels") == 1  # case_02's label has another shape


def test_inputs_are_never_overwritten(bundle: str, scans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (scans / "images" / "case_00.nii.gz").read_bytes()
    assert run(bundle, scans / "images", scans / "images") == 2
    assert run(bundle, scans / "images", scans / "labels", "--truth", scans / "labels") == 2
    assert "would be overwritten; mend" in capsys.readouterr().err
    assert run(bundle, scans / "images", Path(bundle) / "out") == 2
    assert "lies in" in capsys.readouterr().err
    assert not (Path(bundle) / "out").exists()
    assert (scans / "images" / "case_00.nii.gz").read_bytes() == before


def test_volumes_in_sub_folders_are_not_passed_over_in_silence(
    bundle: str, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (scans / "images" / "more").mkdir()
    (scans / "images" / "case_02.nii.gz").rename(scans / "images" / "more" / "case_02.nii.gz")
    assert run(bundle, scans / "images", tmp_path / "out") == 0
    assert "passed over: 1 files, as" in capsys.readouterr().err
    assert run(bundle, scans, tmp_path / "none") == 2
    assert "no scan here" in (said := capsys.readouterr().err)
    assert "lie in sub-folders" in said


def test_one_scan_to_one_file(bundle: str, scans: Path, tmp_path: Path) -> None:
    assert run(bundle, scans / "images" / "case_00.nii.gz", tmp_path / "deep" / "seg.nii.gz") == 0
    assert {f.name for f in (tmp_path / "deep").iterdir()} == {*("seg.nii.gz", "seg.png", "predictions.json")}
    assert run(bundle, scans / "images", tmp_path / "seg.nii.gz") == 2


def test_wrong_calls_are_refused(bundle: str, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(bundle, tmp_path / "nowhere", tmp_path / "out") == 2
    (tmp_path / "empty").mkdir()
    assert run(bundle, tmp_path / "empty", tmp_path / "out") == 2
    assert run(tmp_path / "empty", scans / "images", tmp_path / "out") == 2
    assert run(bundle, scans / "images", tmp_path / "out", "--truth", tmp_path / "nowhere") == 2
    nib.save(nib.load(scans / "images" / "case_00.nii.gz"), scans / "images" / "case_00.nii")
    assert run(bundle, scans / "images", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "no such file or folder" in said
    assert "no bundle here" in said
    assert "have the same name" in said
    assert not (tmp_path / "out").exists()


def test_an_out_that_takes_no_files_is_refused(
    bundle: str, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("thesis")
    (tmp_path / "folder.nii.gz").mkdir()
    for out, said in (
        ("taken", "is a file; mend: name a folder"),
        ("taken/deeper", "can't be written to (Not a directory)"),
        ("taken/a.nii.gz", "can't be written to (File exists)"),
        ("folder.nii.gz", "is a folder, and the label map would go there"),
        ("/proc/out", "can't be written to"),
    ):
        assert run(bundle, scans / "images" / "case_00.nii.gz", tmp_path / out) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert (tmp_path / "taken").read_text() == "thesis"


def test_threads_that_can_not_be_are_refused(
    bundle: str, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", bundle, str(scans / "images"), str(tmp_path / "out"), "--threads"]
    for count in ("-4", "0"):
        assert main([*words, count]) == 2
        assert f"--threads {count}: at least 1" in capsys.readouterr().err
    assert main([*words, "100000"]) == 2
    assert "--threads 100000: at most" in capsys.readouterr().err


def test_a_bundle_without_a_comparison_says_so_and_is_run(
    trained: Trained, bundle: str, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = scans / "images" / "case_00.nii.gz"
    assert run(bundle, scan, tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "with 1 thread (" in said
    assert "\nunchecked: " in said
    checked = export(trained.checkpoint, tmp_path / "checked", cases=trained.cases[:1], threads=1).root
    assert run(checked, scan, tmp_path / "out") == 0
    assert "unchecked" not in capsys.readouterr().out
    (checked / "parity.json").unlink()
    assert run(checked, scan, tmp_path / "out") == 0
    assert "\nunchecked: " in capsys.readouterr().out


def test_an_unknown_run_is_told_the_nearest(
    bundle: str, scans: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("hippocampus-unte", scans / "images", "out") == 2
    assert "no runs here yet" in capsys.readouterr().err
    assert not (workdir / "mlruns").exists()
    Recorder(workdir).run("hippocampus-unet")
    assert run("hippocampus-unte", scans / "images", "out") == 2
    assert "no such bundle folder, and no run 'hippocampus-unte'" in (error := capsys.readouterr().err)
    assert "did you mean 'hippocampus-unet'" in error


def test_an_altered_bundle_is_refused(bundle: str, scans: Path, tmp_path: Path) -> None:
    altered = tmp_path / "bundle"
    shutil.copytree(bundle, altered)
    with (altered / "model.onnx").open("ab") as stream:
        stream.write(b"\0")
    assert run(altered, scans / "images", tmp_path / "out") == 1
    assert not (tmp_path / "out").exists()


def test_a_manifest_of_scans(bundle: str, scans: Path, tmp_path: Path) -> None:
    rows = [
        {"id": f"scan-{n}", "image": f"images/case_0{n}.nii.gz", "label": f"labels/case_0{n}.nii.gz"} for n in range(2)
    ]
    fake.manifest(scans / "list.csv", rows)
    assert run(bundle, scans / "list.csv", tmp_path / "out", "--json", tmp_path / "out.json") == 0
    cases = json.loads((tmp_path / "out.json").read_text())["cases"]
    assert [case["name"] for case in cases] == ["scan-0", "scan-1"]
    assert all(case["dice"] for case in cases)


def test_classification_prints_probabilities(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = classification(tmp_path)
    bundle = export(made.checkpoint, tmp_path / "bundle", cases=None, threads=1)
    write_nifti(Volume(np.random.default_rng(0).normal(80, 9, (1, 28, 28, 1)), np.eye(4)), tmp_path / "a.nii.gz")
    assert run(bundle.root, tmp_path / "a.nii.gz", tmp_path / "out", "--json", "-") == 0
    said = capsys.readouterr()
    chances = json.loads(said.out)["cases"][0]["probabilities"]
    assert sum(chances.values()) == pytest.approx(1)
    assert "onnxruntime" in said.err
    for words in (["x.nii.gz"], ["out", "--probabilities"], ["out", "--truth", "labels"]):
        assert run(bundle.root, tmp_path / "a.nii.gz", *words) == 2
        assert "classification" in capsys.readouterr().err


def test_an_empty_scan_is_refused(bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_nifti(Volume(np.zeros((1, 20, 22, 12), np.int16), np.diag([1, 1, 2.5, 1])), tmp_path / "empty.nii.gz")
    assert run(bundle, tmp_path / "empty.nii.gz", tmp_path / "out") == 1
    assert "one value everywhere" in capsys.readouterr().err
    assert run(bundle, tmp_path / "empty.nii.gz", tmp_path / "out", "--force") == 0
    assert "one value everywhere" in capsys.readouterr().err


def test_what_another_model_wrote_does_not_stay_beside(bundle: str, scans: Path, tmp_path: Path) -> None:
    scan, out = scans / "images" / "case_00.nii.gz", tmp_path / "out"
    assert run(bundle, scan, out, "--probabilities") == 0
    assert (out / "case_00_probabilities.nii.gz").is_file()
    assert run(bundle, scan, out) == 0
    assert not (out / "case_00_probabilities.nii.gz").exists()


def test_what_is_no_scan_is_said(bundle: str, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("L", (4, 4)).save(scans / "images" / "shown.png")
    (scans / "images" / "notes.txt").write_text("notes")
    assert run(bundle, scans / "images", tmp_path / "out") == 0
    assert "passed over: 2 files, as" in capsys.readouterr().err


def test_the_command_imports_no_torch(bundle: str, scans: Path, tmp_path: Path) -> None:
    code = """
import sys
from medlight.cli import machine
from medlight.cli.main import main
code = main(["predict", *sys.argv[1:]])
sys.exit(code or ", ".join({"torch", "monai", "lightning", "mlflow"} & set(sys.modules)) or 0)
"""
    words = [sys.executable, "-c", code, bundle, scans / "images" / "case_00.nii.gz", tmp_path / "out"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_both_kinds_of_onnxruntime_are_warned_of(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "version", {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.32.0"}.get)
    assert main(["predict", "absent-bundle", "in", "out"]) == 2
    assert capsys.readouterr().err.splitlines()[0] == machine.clash()


def test_a_name_that_is_no_utf8(bundle: str, scans: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"M\xfcller")
    (tmp_path / "in").mkdir()
    shutil.copy(next((scans / "images").iterdir()), tmp_path / "in" / f"{name}.nii.gz")
    for _ in range(2):  # the second time from the journal
        assert run(bundle, tmp_path / "in", tmp_path / "out", "--json", tmp_path / "all.json") == 0
    assert (tmp_path / "out" / f"{name}.nii.gz").is_file()
    for file in (tmp_path / "all.json", tmp_path / "out" / "summary.json"):
        (case,) = json.loads(file.read_text())["cases"]
        assert case["name"] == name, file
    assert "M\\udcfcller,predicted" in (tmp_path / "out" / "summary.csv").read_text()
