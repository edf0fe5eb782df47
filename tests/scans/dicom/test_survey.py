"""A whole tree: every volume judged, nothing that can't be read keeps the rest from it, nothing of the patient kept."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from medlight.scans.dicom import survey as module
from medlight.scans.dicom.frames import Place
from medlight.scans.dicom.geometry import affine
from medlight.scans.dicom.survey import as_json, survey, table
from tests.data import fake_dicom as fake
from tests.data.fake_dicom import Grid

PYDICOM = Path(pydicom.__file__).parent / "data" / "test_files"


def statuses(found) -> dict[str, int]:
    counts: dict[str, int] = {}
    for stack in found.stacks:
        counts[stack.verdict.status] = counts.get(stack.verdict.status, 0) + 1
    return counts


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_tree_with_everything_in_it(tmp_path):
    fake.write(fake.series(series="a"), tmp_path / "x" / "a")
    fake.write(fake.tilted(series="b"), tmp_path / "x")
    fake.write(fake.by_time(3, series="c"), tmp_path / "y")
    fake.write(fake.report(), tmp_path / "y")
    fake.write(fake.localizer(series="d"), tmp_path / "y")
    fake.zipped(fake.write(fake.enhanced(series="e"), tmp_path / "z"), tmp_path / "z.zip")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "broken.dcm").write_bytes(os.urandom(1000))
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.eye(4)), tmp_path / "n.nii.gz")
    found = survey([tmp_path])
    assert statuses(found) == {"ok": 5, "tilt": 1, "not-a-volume": 1, "unreadable": 1}
    assert (found.passed_over, [path.name for path in found.others]) == (1, ["n.nii.gz"])
    steps = []
    assert survey([tmp_path], progress=lambda done, total: steps.append((done, total))).stacks == found.stacks
    assert steps[-1][0] == steps[-1][1] == 6 + 6 + 18 + 1 + 3 + 1 + 1


def test_processes_change_nothing(tmp_path, monkeypatch):
    fake.write(fake.series(), tmp_path)
    (tmp_path / "broken.dcm").write_bytes(b"")
    monkeypatch.setattr(module, "_CHUNK", 2)
    assert survey([tmp_path], workers=2).stacks == survey([tmp_path]).stacks


def test_a_slice_that_cannot_be_read_is_told_of_its_volume(tmp_path):
    """Without the last slice the others would make a smaller volume, and nobody would know."""
    folder = fake.write(fake.series(), tmp_path / "s")
    last = max(files(folder), key=lambda path: pydicom.dcmread(path).ImagePositionPatient[2])
    last.write_bytes(last.read_bytes()[:-10])
    fake.write(fake.series(series="other"), tmp_path / "o")
    found = survey([tmp_path])
    assert statuses(found) == {"ok": 1, "unreadable": 1}
    stack = next(stack for stack in found.stacks if stack.verdict.status == "unreadable")
    assert len(stack.frames) == 5
    assert stack.verdict.told.startswith(f"{last}: cut off")
    assert last.name not in stack.verdict.detail


def test_a_copy_that_lacks_a_slice_is_told_apart_from_the_whole_one(tmp_path):
    for folder in ("a", "b", "c"):
        fake.write(fake.series(), tmp_path / folder)
    broken = sorted((tmp_path / "b").iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:-7])
    found = {stack.frames[0].place.path.parent.name: stack for stack in survey([tmp_path]).stacks}
    assert {name: stack.verdict.status for name, stack in found.items()} == {"a": "ok", "b": "unreadable", "c": "ok"}
    assert found["b"].verdict.place == Place(broken)


def test_many_that_cannot_be_read_are_counted(tmp_path):
    folder = fake.write(fake.series(), tmp_path)
    for file in files(folder)[:3]:
        file.write_bytes(file.read_bytes()[:-10])
    (stack,) = survey([tmp_path]).stacks
    assert "2 more objects of its series" in stack.verdict.detail


def test_a_series_of_nothing_readable_is_named(tmp_path):
    file = fake.save(fake.plane(Grid(), 0), tmp_path / "a.dcm")
    file.write_bytes(file.read_bytes()[:-10])
    (tmp_path / "b.dcm").write_bytes(b"")
    first, second = survey([tmp_path]).stacks
    assert {first.verdict.status, second.verdict.status} == {"unreadable"}
    assert first.id != second.id
    assert len({first.series_uid, second.series_uid, ""}) == 2
    here = {stack.id for stack in (first, second)}
    (tmp_path / "sub").mkdir()
    for path in files(tmp_path):
        path.rename(tmp_path / "sub" / f"{random.Random(path.name).random()}.dcm")
    assert {stack.id for stack in survey([tmp_path]).stacks} == here


def test_pixels_that_cannot_be_decoded_are_found_when_asked(tmp_path):
    made = pydicom.dcmread(PYDICOM / "JPEG2000.dcm")
    made.Modality = "DX"
    folder = tmp_path / "j"
    fake.save(made, folder / "whole.dcm")
    data = (folder / "whole.dcm").read_bytes()
    (tmp_path / "k").mkdir()
    uid = str(made.SOPInstanceUID).encode()
    cut = data[:-90].replace(uid, uid[:-1] + b"9")
    (tmp_path / "k" / "cut.dcm").write_bytes(cut)
    shallow = survey([tmp_path])
    assert "unreadable" not in statuses(shallow), [stack.verdict for stack in shallow.stacks]
    for workers in (0, 2):
        deep = survey([tmp_path], deep=True, workers=workers)
        broken = [stack for stack in deep.stacks if stack.verdict.status == "unreadable"]
        assert len(broken) == 1
        assert broken[0].verdict.place.path.name == "cut.dcm"
        assert "cut.dcm" not in broken[0].verdict.detail


def test_what_a_program_is_told(tmp_path):
    fake.write(fake.by_time(3, grid=Grid(orientation=fake.SAGITTAL)), tmp_path)
    (stack,) = survey([tmp_path]).stacks
    told = as_json(stack)
    assert told == {
        "id": stack.id,
        "series_uid": stack.series_uid,
        "modality": "MR",
        "files": 18,
        "shape": [12, 10, 6],
        "channels": 3,
        "spacing_mm": [0.75, 1.5, 2.5],
        "orientation": "PIR" if told["orientation"] == "PIR" else "PIL",
        "status": "ok",
        "detail": "",
    }
    assert told["orientation"] == "".join(nib.aff2axcodes(affine(stack.frames[:6])))
    assert table([stack]) == [(stack.id, "MR", "18", "12x10x6x3", "0.75x1.5x2.5", told["orientation"], "ok", "")]


@pytest.mark.parametrize(
    ("datasets", "spacing", "orientation"),
    [
        (fake.without(fake.series(Grid(shape=(10, 12, 9))), 4), [0.75, 1.5, 2.5], "LPS"),
        (fake.doubled(fake.series()), [0.75, 1.5, 2.5], "LPS"),
        (fake.two_orientations(2), [0.75, 1.5], ""),
        (fake.series(Grid(shape=(10, 12, 1))), [0.75, 1.5], "LPS"),
        (fake.secondary_capture(), [], ""),
        (fake.radiograph(), [0.1, 0.2, 1.0], ""),
    ],
)
def test_what_makes_no_sense_for_a_verdict_is_left_out(tmp_path, datasets, spacing, orientation):
    fake.write(datasets, tmp_path)
    (told,) = (as_json(stack) for stack in survey([tmp_path]).stacks)
    assert (told["spacing_mm"], told["orientation"]) == (spacing, orientation)


def test_nothing_of_the_patient_is_told(tmp_path):
    """Identities in every text of the header, and in the names of files and folders."""
    home = tmp_path / "Zyzzyva Jane"
    for number, datasets in enumerate(
        (fake.series(), fake.tilted(series="t"), [fake.report()], fake.localizer(series="l"))
    ):
        for dataset in datasets:
            for element in dataset:
                if element.VR in ("LO", "SH", "PN", "LT", "ST", "UT", "AE"):
                    element.value = "Doe^Jane Zyzzyva"
            dataset.Modality = "JANE" if number == 3 else dataset.Modality
        fake.write(datasets, home / f"Zyzzyva{number}")
    broken = home / "Zyzzyva.dcm"
    broken.write_bytes(fake.save(fake.plane(Grid(), 0, series="z"), broken).read_bytes()[:-9])
    (home / "Jane.dcm").write_bytes(b"")
    found = survey([tmp_path])
    kept = json.dumps([as_json(stack) for stack in found.stacks])
    kept += repr([(stack.facts, stack.channels, stack.verdict.detail) for stack in found.stacks])
    assert not any(secret in kept for secret in (*fake.SECRETS, "JANE"))
    assert any("Zyzzyva.dcm" in row[-1] for row in table(found.stacks))


def test_each_failing_series_has_its_verdict(data_root):
    expected = {
        "gantrytilting": ("tilt", "14.0 degrees"),
        "notavolume": ("not-a-volume", "a single slice, 4 times"),
        "slicecount": ("not-a-volume", "only 2 slices, 1 mm apart"),
        "sliceincrement": ("gap", "10 mm between slices 3 and 4, 5 mm between the others: 1 slice is missing"),
        "sliceorientation": ("mixed-orientation", "up to 90.0 degrees"),
    }
    for name, (status, words) in expected.items():
        (stack,) = survey([data_root / "dicom" / "failing" / name / "001"]).stacks
        assert (name, stack.verdict.status) == (name, status)
        assert words in stack.verdict.detail


TRUTHS = ("anatomical", "generic/anatomical", "generic/compressed", "generic/compressed_j2k", "generic/compressed_jpeg")


@pytest.mark.parametrize("folder", [*TRUTHS, "generic/compressed_jpegls", "generic/compressed_rle", "generic/rgb"])
def test_real_series_are_ok_where_their_ground_truth_has_them(data_root, folder):
    """The affine maps every corner to where the NIfTI has it, to 1e-3 mm; either may run its axes the other way."""
    root = data_root / "dicom" / folder
    series = [path for path in root.iterdir() if path.is_dir()]
    assert series
    for path in series:
        (stack,) = survey([path]).stacks
        assert stack.verdict.status == "ok"
        image = nib.load(root / f"{path.name}_ground_truth.nii.gz")
        rows, columns = stack.frames[0].shape
        assert sorted(image.shape[:3]) == sorted((columns, rows, len(stack.frames)))
        ours = corners(affine(stack.frames), (columns, rows, len(stack.frames)))
        np.testing.assert_allclose(ours, corners(image.affine, image.shape[:3]), atol=1e-3)


def corners(place: np.ndarray, shape) -> np.ndarray:
    """The corner voxels' centres in a fixed order, whatever the order and sense of the axes."""
    ends = np.array([(i, j, k, 1) for i in (0, shape[0] - 1) for j in (0, shape[1] - 1) for k in (0, shape[2] - 1)])
    found = (ends @ place.T)[:, :3]
    return found[np.lexsort(np.round(found, 2).T)]


def test_colours_are_channels(tmp_path):
    """As they are of a NIfTI file in colour, and of the volume that is read."""
    from medlight.scans import read

    coloured = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    made = fake.radiograph(**coloured, BitsAllocated=8, BitsStored=8, HighBit=7, PixelData=bytes(20 * 16 * 3))
    made["PixelData"].VR = "OB"
    path = fake.save(made, tmp_path / "a.dcm")
    (stack,) = survey([path]).stacks
    assert as_json(stack)["shape"] == [16, 20, 1]
    assert as_json(stack)["channels"] == len(read(path).array) == 3
    assert table([stack])[0][3] == "16x20x1x3"


def test_a_whole_head_is_ok(data_root):
    (stack,) = survey([data_root / "dicom" / "datalad_structural"]).stacks
    told = as_json(stack)
    assert (told["status"], told["shape"], told["files"]) == ("ok", [274, 384, 160], 160)


def test_the_whole_of_the_real_data_is_surveyed(data_root):
    """No crash on any of it, and each object is told of."""
    found = survey([data_root / "dicom", PYDICOM])
    assert len(found.stacks) > 90
    assert all(row[0] and row[6] for row in table(found.stacks))
    json.dumps([as_json(stack) for stack in found.stacks])
