"""Identities in every text tag, and in file and folder names, reach nothing that medlight leaves behind."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torchio as tio
import yaml
from pydicom.datadict import DicomDictionary, keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from medlight.cli.main import main
from medlight.scans import Volume, read, write_nifti
from tests.data import fake_dicom
from tests.launch import study

TEXT = ("PN", "LO", "SH", "ST", "LT", "UT", "UC", "AE", "UR")
WORD = "Zyzzyva"  # in every planted value
BIRTH = "19120623"
FOLDER = "Doe^Zyzzyva Jane, 1912 (left)"
GRID = fake_dicom.Grid(shape=(20, 20, 20), spacing=(1.0, 1.0), step=1.0)
NAMES = (WORD, WORD.lower(), BIRTH, "Doe^", "Jane", *fake_dicom.IDENTITY.values())


def plant(dataset: Dataset) -> Dataset:
    """A name in every text tag, in a sequence, in private tags, and in values that are not valid."""
    for tag, entry in DicomDictionary.items():
        if entry[0] in TEXT and entry[1] == "1" and tag >> 16 not in (0x0000, 0x0002, 0x0004) and entry[3] != "Retired":
            setattr(dataset, keyword_for_tag(tag), f"{WORD}{tag:x}"[:16])
    dataset.PatientName, dataset.PatientBirthDate, dataset.PatientAge = f"Doe^{WORD}", BIRTH, "111Y"
    with pydicom.config.disable_value_validation():
        dataset.PatientSex, dataset.ContentDate, dataset.ContentTime = WORD.lower(), f"{WORD} {BIRTH}", WORD
    inner = Dataset()
    inner.RequestedProcedureDescription, inner.PatientComments = f"{WORD} asked", f"{WORD} said"
    dataset.RequestAttributesSequence = Sequence([inner])
    block = dataset.private_block(0x0029, f"{WORD} SYSTEMS", create=True)
    block.add_new(1, "LO", f"private {WORD}")
    block.add_new(2, "UN", f"hidden {WORD}".encode())
    return dataset


def scans(folder: Path, cases: int) -> None:
    """Series in folders called by patients, in files called by them, and their label maps."""
    for number in range(cases):
        made = [plant(each) for each in fake_dicom.series(GRID, series=f"{number}", channel=number % 3)]
        if number == 1:
            made = fake_dicom.without(made, 7)
        place = folder / "images" / f"{FOLDER} {number}" / f"study of {WORD}"
        for index, each in enumerate(made):
            fake_dicom.save(each, place / f"{WORD}_{index:03d}.dcm")
        if number == cases - 1:
            fake_dicom.save(fake_dicom.doubled(made)[-1], place / f"{WORD}_again.dcm")  # left out: a duplicate
        array = np.zeros((1, 20, 20, 20), np.uint8)
        array[0, 5:12, 6:13, 5 + number : 12 + number] = 1
        affine = fake_dicom.truth(GRID)[1]
        write_nifti(Volume(array, affine), folder / "labels" / f"{FOLDER} {number}.nii.gz")


def config(**trainer: object) -> dict:
    whole = study.config(max_epochs=1, **trainer)
    data = whole["data"]["init_args"]
    data["split"] = {"class_path": "medlight.prepare.RandomSplit", "init_args": {"val": 0.3, "test": 0.2}}
    data["preparation"] = {"class_path": "medlight.prepare.Preparation", "init_args": {"on": {"gap": "interpolate"}}}
    data["source"]["init_args"]["label_names"] = {1: "blob"}
    return whole


def contents(root: Path) -> list[tuple[str, bytes]]:
    """Every file below a folder, by name, unpacked where it is packed."""
    found = []
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        content = path.read_bytes() if path.is_file() else b""
        found.append((name, content))
        if content[:2] == b"\x1f\x8b":
            found.append((name, gzip.decompress(content)))
        if path.is_file() and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                found += [(f"{name}:{member}", archive.read(member)) for member in archive.namelist()]
    return found


def assert_nameless(where: str, found: list[tuple[str, bytes]], uids: bool = True) -> None:
    assert len(found) > 0, where
    secret = [name.encode() for name in NAMES]
    secret += [str(fake_dicom.uid("series", f"{n}")).encode() for n in range(8)] if uids else []
    for name, content in found:
        for word in secret:
            assert word not in name.encode(), f"{where}: {name} is called by {word!r}"
            assert word not in content, f"{where}: {name} holds {word!r}"


def test_a_whole_life_leaves_no_name(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scans(workdir, 7)
    (workdir / "fit.yaml").write_text(yaml.safe_dump(config(), sort_keys=False))
    assert main(["data", "prepare", "-c", "fit.yaml", "--on-bad-case", "skip"]) == 0
    said = capsys.readouterr()
    assert WORD in said.out, "the terminal says which folder was left out"
    assert said.out.count("mended") == 1
    assert main(["fit", "-c", "fit.yaml", "--on-bad-case", "skip", "--json", "fit.json"]) == 0
    capsys.readouterr()
    run = yaml.safe_load((workdir / "fit.json").read_text())["run_id"]
    assert main(["test", run]) == 0
    assert main(["export", run, "bundle", "--cases", "2", "--threads", "1"]) == 0
    printed = capsys.readouterr()
    source = workdir / "images" / f"{FOLDER} 0"
    assert main(["predict", "bundle", str(source), "out", "--format", "nifti", "--threads", "1"]) == 0
    capsys.readouterr()
    runs = contents(workdir / "mlruns")
    assert len(runs) > 20
    assert_nameless("the runs and the store", runs)
    assert_nameless("the bundle", contents(workdir / "bundle"))
    assert_nameless("what fit writes with --json", [("fit.json", (workdir / "fit.json").read_bytes())])
    lines = [line for line in (printed.out + printed.err).splitlines() if not line.startswith("left out")]
    assert_nameless("what test and export print", [("", "\n".join(lines).encode())])
    assert_nameless("predictions", contents(workdir / "out"))
    record = next(content for name, content in runs if name.endswith("manifest.json"))
    assert b"case-" in record
    assert b"mended" in record
    predicted = read(next((workdir / "out").glob("case-*.nii.gz")))
    np.testing.assert_allclose(predicted.affine, fake_dicom.truth(GRID)[1], atol=1e-4)
    assert main(["predict", "bundle", str(source), "filed", "--threads", "1"]) == 0
    assert_filed_with_its_patient(contents(workdir / "filed"))


def assert_filed_with_its_patient(written: list[tuple[str, bytes]]) -> None:
    """A DICOM-SEG holds its source's Patient, General Study and Frame of Reference modules (PS3.3 A.51), no more."""
    assert_nameless("what stands beside a DICOM-SEG", [each for each in written if not each[0].endswith(".dcm")])
    (content,) = [content for name, content in written if name.endswith(".dcm")]
    seg = pydicom.dcmread(io.BytesIO(content))
    holding = {each.keyword for each in seg.iterall() if each.VR != "SQ" and WORD in str(each.value)}
    assert {"PatientName", "PatientID", "AccessionNumber"} <= holding
    more = {"ReferringPhysicianName", "StudyID", "PositionReferenceIndicator"}
    assert holding <= {"PatientName", "PatientID", "AccessionNumber"} | more


def test_a_failure_names_no_one(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scans(workdir, 4)
    whole = config()
    whole["data"]["init_args"]["augment"] = [{"class_path": "tests.launch.test_dicom_identity.Broken"}]
    (workdir / "fit.yaml").write_text(yaml.safe_dump(whole, sort_keys=False))
    assert main(["fit", "-c", "fit.yaml"]) == 1
    assert "duplicate" in capsys.readouterr().err
    assert main(["fit", "-c", "fit.yaml", "--on", "duplicate=first"]) == 1
    said = capsys.readouterr().err
    assert "case case-" in said
    assert_nameless("the runs", contents(workdir / "mlruns"))


class Broken(tio.Transform):
    """A transform that fails."""

    def __init__(self, fails: bool = True) -> None:
        super().__init__()
        self.fails = fails

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        if self.fails:
            raise ValueError("no good")
        return subject


@pytest.mark.slow
def test_a_sweep_leaves_no_name(workdir: Path) -> None:
    """Trials of which one fails; their logs and Optuna's journal stay as well."""
    scans(workdir, 5)
    whole = config()
    broken = [{"class_path": "tests.launch.test_dicom_identity.Broken", "init_args": {"fails": False}}]
    whole["data"]["init_args"] |= {"on_bad_case": "skip", "augment": broken}
    (workdir / "fit.yaml").write_text(yaml.safe_dump(whole, sort_keys=False))
    sweep = {
        "fit": "fit.yaml",
        "name": "names",
        "space": {"data.augment.0.fails": {"type": "categorical", "choices": [False, True]}},
        "objectives": [{"metric": "val/dice", "direction": "maximize"}],
        "sampler": {
            "class_path": "optuna.samplers.GridSampler",
            "init_args": {"search_space": {"data.augment.0.fails": [False, True]}, "seed": 0},
        },
        "trials": 2,
        "workers": 1,
        "threads": 1,
    }
    (workdir / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    # in a process of its own: trials write to where the server that starts them was first told to
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "medlight", "sweep", "-c", "sweep.yaml"]
    said = subprocess.run(command, cwd=workdir, env=environment, capture_output=True, text=True, check=True)
    assert WORD in said.stderr, "the terminal says which folder was left out"
    left = contents(workdir / "mlruns")
    assert any(b"no good" in content for name, content in left if name.endswith(".log"))
    assert_nameless("the sweep", left)
