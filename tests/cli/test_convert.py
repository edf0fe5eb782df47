"""``medlight data convert``: trees to NIfTI, labels on their images' grids, label maps to DICOM-SEG; resumable."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pydicom
import pytest

from medlight.cli import convert as command
from medlight.errors import MedlightError, UsageError
from medlight.scans import Volume, read, write_nifti
from tests.data import fake_dicom as fake


def run(capsys, *arguments):
    """Run the action by itself; returns the exit code, what it said, and what it wrote as JSON."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    parser.add_argument("--json")
    given = [str(argument) for argument in arguments] + ([] if "--workers" in arguments else ["--workers", "1"])
    code = command.run(parser.parse_args([*given, "--json", "found.json"]))
    said = capsys.readouterr()
    with open("found.json") as file:
        return code, said.out + said.err, json.load(file)


def volumes(folder):
    return sorted(path for path in folder.rglob("*.nii.gz") if not path.name.startswith("."))


def test_a_tree_becomes_nifti(workdir, capsys):
    grid = fake.Grid()
    fake.write(fake.series(grid), workdir / "in" / "Zyzzyva")
    fake.write(fake.by_time(3, series="film"), workdir / "in" / "Zyzzyva" / "b")
    (workdir / "in" / "notes.txt").write_text("no DICOM")
    code, said, found = run(capsys, "in", "out")
    assert code == 0
    three, four = sorted(volumes(workdir / "out"), key=lambda path: nib.load(path).ndim)
    array, affine = fake.truth(grid)
    assert np.array_equal(nib.load(three).get_fdata(), array[0])
    assert np.allclose(nib.load(three).affine, affine, atol=1e-4)
    assert nib.load(four).shape == (12, 10, 6, 3)
    assert {file for one in found for file in one["written"]} == {three.name, four.name}
    assert all(one["status"] == "ok" and not one["reused"] for one in found)
    assert "2 written" in said
    assert "1 file passed over" in said
    assert "in/Zyzzyva/b" in said  # for the person who asked
    kept = json.dumps(found) + (workdir / "out" / "converted.jsonl").read_text()
    assert "zyzzyva" not in (kept + "".join(map(str, volumes(workdir / "out")))).lower()


def test_what_was_done_is_not_done_again(workdir, capsys):
    fake.write(fake.series(), workdir / "in")
    fake.write(fake.series(series="two"), workdir / "in" / "b")
    assert run(capsys, "in", "out")[0] == 0
    before = {path: path.stat().st_mtime_ns for path in volumes(workdir / "out")}
    code, said, found = run(capsys, "in", "out")
    assert code == 0
    assert "2 of them before" in said
    assert all(one["reused"] for one in found)
    assert {path: path.stat().st_mtime_ns for path in volumes(workdir / "out")} == before
    _first, second = before
    second.unlink()  # as after a kill
    with (workdir / "out" / "converted.jsonl").open("a") as record:
        record.write('{"name": "ct-00')
    _, _, found = run(capsys, "in", "out")
    assert sorted(one["reused"] for one in found) == [False, True]
    assert second.is_file()
    shutil.move(workdir / "in", workdir / "elsewhere")  # the same content
    assert all(one["reused"] for one in run(capsys, "elsewhere", "out")[2])
    for path in (workdir / "elsewhere").iterdir():
        if path.is_file():
            dataset = pydicom.dcmread(path)
            dataset.PixelData = bytes(len(dataset.PixelData))
            dataset.save_as(path)
    _, _, found = run(capsys, "elsewhere", "out")
    assert sorted(one["reused"] for one in found) == [False, True]


def test_a_killed_run_goes_on_where_it_was(workdir, capsys):
    for number in range(8):
        fake.write(fake.series(fake.Grid(shape=(200, 200, 20)), series=f"s{number}"), workdir / "in" / f"{number}")
    command_line = [sys.executable, "-m", "medlight", "data", "convert", "in", "out", "--workers", "1"]
    with subprocess.Popen(command_line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        for _ in range(600):
            if (workdir / "out" / "converted.jsonl").is_file():
                break
            time.sleep(0.02)
        process.kill()
    left = workdir / "out" / ".0123.tmp-ct-0.nii.gz"
    left.write_text("half")
    os.utime(left, (0, 0))
    before = {path: path.stat().st_mtime_ns for path in volumes(workdir / "out")}
    recorded = (workdir / "out" / "converted.jsonl").read_text().count("\n")
    code, _, found = run(capsys, "in", "out")
    assert code == 0
    assert 0 < sum(one["reused"] for one in found) == recorded <= len(before)
    assert len(volumes(workdir / "out")) == 8
    assert not left.exists()
    assert sum(path.stat().st_mtime_ns == when for path, when in before.items()) >= recorded


def test_copies_of_the_same_objects_do_not_overwrite_each_other(workdir, capsys):
    one, other = fake.series(), fake.series()
    for dataset in other:
        dataset.PixelData = bytes(len(dataset.PixelData))
    fake.write(one, workdir / "in" / "a")
    fake.write(other, workdir / "in" / "b")
    code, _, _ = run(capsys, "in", "out")
    first, second = volumes(workdir / "out")
    assert code == 0
    assert second.name.startswith(first.name.removesuffix(".nii.gz")) or first.name.endswith("-2.nii.gz")
    assert sorted(nib.load(path).get_fdata().any() for path in (first, second)) == [False, True]
    assert all(one["reused"] for one in run(capsys, "in", "out")[2])


def test_mends(workdir, capsys):
    fake.write(fake.without(fake.series(), 2), workdir / "in")
    code, said, found = run(capsys, "in", "out")
    assert code == 1
    assert (found[0]["status"], found[0]["written"]) == ("gap", [])
    assert "--on gap=interpolate" in said
    assert not volumes(workdir / "out")
    code, _, found = run(capsys, "in", "out", "--on", "gap=interpolate")
    assert code == 0
    assert found[0]["mended"]
    (path,) = volumes(workdir / "out")
    assert nib.load(path).shape == (12, 10, 6)
    assert (found[0]["status"], found[0]["shape"]) == ("ok", [12, 10, 6])  # as data check says with the same mends
    code, _, found = run(capsys, "in", "split", "--on", "gap=split")
    assert code == 0
    assert sorted(nib.load(path).shape[2] for path in volumes(workdir / "split")) == [2, 3]
    with pytest.raises(UsageError, match="gap"):
        run(capsys, "in", "out", "--on", "gop=split")


def test_a_bad_series_does_not_stop_the_others(workdir, capsys):
    fake.write(fake.series(), workdir / "in")
    broken = fake.series(series="broken")
    for dataset in broken:
        dataset.PixelData = dataset.PixelData[:20]
    fake.write(broken, workdir / "in" / "b")
    (workdir / "in" / "c.dcm").write_bytes(b"")
    code, said, found = run(capsys, "in", "out")
    assert code == 1
    assert len(volumes(workdir / "out")) == 1
    assert said.count("unreadable") >= 2
    assert all(one["reason"] for one in found if not one["written"])
    assert str(workdir) not in json.dumps(found)


def test_localizers_and_reports_are_no_failure(workdir, capsys):
    fake.write(fake.series(), workdir / "in")
    fake.write(fake.localizer(series="plan"), workdir / "in" / "a")
    fake.save(fake.report(), workdir / "in" / "b" / "x")
    code, said, _ = run(capsys, "in", "out")
    assert code == 0
    assert "not-a-volume" in said
    assert len(volumes(workdir / "out")) == 1


@pytest.fixture
def mask(workdir):
    """A series, and a label map on its grid."""
    fake.write(fake.series(), workdir / "in" / "series")
    array, affine = fake.truth(fake.Grid())
    drawn = np.zeros_like(array, dtype=np.uint8)
    drawn[0, 2:6, 3:7, 1:4] = 1
    drawn[0, 7:9, 3:7, 4:6] = 2
    write_nifti(Volume(drawn, affine), workdir / "mask.nii.gz")
    return drawn


def test_a_label_map_becomes_a_segmentation_and_comes_back(mask, workdir, capsys):
    code, _, found = run(capsys, "mask.nii.gz", "in/seg.dcm", "--like", "in/series")
    assert code == 0
    assert found["values"] == [1, 2]
    written = pydicom.dcmread("in/seg.dcm")
    assert written.Modality == "SEG"
    assert written.StudyInstanceUID == fake.series()[0].StudyInstanceUID
    code, _said, found = run(capsys, "in", "out")
    assert code == 0
    (image,) = (workdir / "out").glob("*.nii.gz")
    (label,) = (workdir / "out" / "labels").iterdir()
    assert image.name == label.name
    assert np.array_equal(nib.load(label).get_fdata(), mask[0])
    assert np.allclose(nib.load(label).affine, nib.load(image).affine)
    assert [one["written"] for one in found if one["modality"] == "SEG"] == [[f"labels/{label.name}"]]
    assert all(one["reused"] for one in run(capsys, "in", "out")[2])


def test_a_segmentation_in_a_zip(mask, workdir, capsys):
    run(capsys, "mask.nii.gz", "in/seg.dcm", "--like", "in/series")
    fake.zipped(workdir / "in", workdir / "Zyzzyva.zip")
    code, _, _ = run(capsys, "Zyzzyva.zip", "out")
    assert code == 0
    (label,) = (workdir / "out" / "labels").iterdir()
    assert np.array_equal(nib.load(label).get_fdata(), mask[0])


def test_a_segmentation_without_its_image(mask, workdir, capsys):
    run(capsys, "mask.nii.gz", "seg/seg.dcm", "--like", "in/series")
    code, said, found = run(capsys, "seg", "out")
    assert code == 1
    assert "the image it was drawn on" in said
    assert not found[0]["written"]


def test_overlapping_regions_become_masks(workdir, capsys, data_root):
    """RTSTRUCT of rt-utils, whose images lie beside it."""
    folder = data_root / "dicom" / "rt_utils"
    code, said, found = run(capsys, folder, "out")
    labels = sorted((workdir / "out" / "labels").glob("*.nii.gz"))
    assert labels, said
    regions = [region for one in found for region in one["regions"]]
    assert {region["file"] for region in regions} == {f"labels/{path.name}" for path in labels}
    for region in regions:
        assert region["value"] in (1, region["number"])
        assert region["value"] == 1 or not region["file"].endswith(f"_{region['number']}.nii.gz")
    assert all(set(np.unique(nib.load(path).dataobj)) <= set(range(256)) for path in labels)
    assert all(nib.load(path).get_fdata().any() for path in labels)
    assert any(one["modality"] == "RTSTRUCT" and one["written"] for one in found)
    del code


def test_what_has_no_scan_leaves_nothing(mask, workdir, capsys):
    (workdir / "empty").mkdir()
    with pytest.raises(MedlightError, match=r"^empty: holds no DICOM file$") as caught:
        run(capsys, "empty", "out")
    assert caught.value.exit_code == 1
    for name in ("a.nii.gz", "b.nii.gz"):
        shutil.copy(workdir / "mask.nii.gz", workdir / "empty" / name)
    with pytest.raises(MedlightError, match=r"holds no DICOM file; 2 NIfTI files passed over$"):
        run(capsys, "empty", "out")
    assert not (workdir / "out").exists()
    shutil.copytree(workdir / "in", workdir / "empty" / "series")
    code, said, _ = run(capsys, "empty", "out")
    assert code == 0
    assert "1 written to out; 2 NIfTI files passed over" in said


def test_a_label_map_needs_its_series(mask, workdir, capsys):
    with pytest.raises(UsageError, match="give --like SERIES"):
        run(capsys, "mask.nii.gz", "x.dcm")
    assert not (workdir / "x.dcm").exists()


def test_an_image_is_not_written_as_a_segmentation(mask, workdir, capsys):
    _, affine = fake.truth(fake.Grid())
    image = np.arange(mask.size, dtype=np.float32).reshape(mask.shape)
    for array, told in ((image, "image.nii.gz: 719 different values"), (image * 0.7, "image.nii.gz: 0.7 is no label")):
        write_nifti(Volume(array, affine), workdir / "image.nii.gz")
        with pytest.raises(MedlightError, match=told):
            run(capsys, "image.nii.gz", "x.dcm", "--like", "in/series")
    assert not (workdir / "x.dcm").exists()
    write_nifti(Volume(mask.astype(np.float32), affine), workdir / "image.nii.gz")
    assert run(capsys, "image.nii.gz", "x.dcm", "--like", "in/series")[2]["values"] == [1, 2]


def test_only_its_own_segmentation_is_overwritten(mask, workdir, capsys):
    fake.write(fake.series(series="two"), workdir / "other")
    foreign = shutil.copy(next((workdir / "other").iterdir()), workdir / "x.dcm")
    before = (workdir / "x.dcm").read_bytes()
    with pytest.raises(UsageError, match=r"x.dcm: is there, and no DICOM-SEG of medlight"):
        run(capsys, "mask.nii.gz", "x.dcm", "--like", "in/series")
    assert (workdir / "x.dcm").read_bytes() == before
    os.unlink(foreign)
    for _ in range(2):
        assert run(capsys, "mask.nii.gz", "x.dcm", "--like", "in/series")[0] == 0


def test_the_patient_is_not_printed(workdir):
    fake.write(fake.series(PatientName="Zyzzyva", ReferringPhysicianName="Zyzzyva"), workdir / "in")
    array, affine = fake.truth(fake.Grid())
    write_nifti(Volume((array > array.mean()).astype(np.uint8), affine), workdir / "mask.nii.gz")
    command_line = [sys.executable, "-m", "medlight", "data", "convert", "mask.nii.gz", "x.dcm", "--like", "in"]
    done = subprocess.run(command_line, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("x.dcm: 1 segment\n", "")


def test_what_each_value_is(mask, workdir, capsys, monkeypatch):
    from medlight.prepare import Label
    from medlight.scans.dicom_seg import write_seg

    labels = [Label(1, "Zyzzyva", None, ("10200004", "SCT", "Liver")), Label(2, "Quixotic", None, ("1", "99ME", "Doe"))]
    write_seg(read("mask.nii.gz"), workdir / "in" / "series", workdir / "in" / "seg.dcm", labels)
    for again in (False, True):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        _, said, found = run(capsys, "in", "out")
        (entry,) = (one for one in found if one["modality"] == "SEG")
        (file,) = entry["written"]
        assert entry["reused"] == again
        assert entry["regions"] == [
            {"file": file, "value": 1, "number": 1, "code": ["10200004", "SCT", "Liver"]},
            {"file": file, "value": 2, "number": 2, "code": None},
        ]
        assert f"{file}: 1 is Zyzzyva (SCT 10200004 Liver), 2 is Quixotic" in said
    record = (workdir / "out" / "converted.jsonl").read_text()
    assert json.loads(record.splitlines()[-1])["regions"] == entry["regions"]
    assert not {word for word in ("Zyzzyva", "Quixotic", "Doe") if word in record + json.dumps(found)}


def test_calls_that_are_wrong(mask, workdir, capsys):
    fake.write(fake.series(), workdir / "other")
    for arguments in (
        ("absent", "out"),
        ("in", "in/out"),
        ("in", "in"),
        ("in", "mask.nii.gz"),
        ("mask.nii.gz", "out", "--like", "in"),
    ):
        with pytest.raises(UsageError):
            run(capsys, *arguments)
    with pytest.raises(UsageError, match="workers"):
        run(capsys, "in", "out", "--workers", "0")
    image = next((workdir / "in" / "series").iterdir())
    shutil.copy(image, workdir / "in" / "series" / "x.dcm")
    with pytest.raises(UsageError, match="never written"):
        run(capsys, "mask.nii.gz", "in/series/x.dcm", "--like", "in/series")
    with pytest.raises(MedlightError):
        run(capsys, "mask.nii.gz", "seg.dcm", "--like", "in/series", "--on", "gap=split")


def test_real_series_agree_with_their_ground_truth(data_root, workdir, capsys):
    folder = data_root / "dicom" / "anatomical"
    code, said, _found = run(capsys, folder / "001", "out")
    assert code == 0, said
    truth = nib.load(folder / "001_ground_truth.nii.gz")
    (path,) = volumes(workdir / "out")
    ours = read(path)
    turned = nib.as_closest_canonical(nib.load(path))
    wanted = nib.as_closest_canonical(truth)
    assert np.allclose(turned.affine, wanted.affine, atol=1e-3)
    assert np.array_equal(turned.get_fdata(), wanted.get_fdata())
    assert ours.shape
