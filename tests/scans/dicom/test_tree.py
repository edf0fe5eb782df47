"""Finding DICOM objects, whatever they are called and wherever they hide."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import pydicom
import pytest

from medlight.errors import MedlightError, UsageError
from medlight.scans.dicom.frames import Place
from medlight.scans.dicom.tree import objects, open_place
from tests.data import fake_dicom as fake

PYDICOM = Path(pydicom.__file__).parent / "data" / "test_files"


def names(tree) -> list[str]:
    return [place.member or place.path.name for place in tree.places]


def causes(tree) -> dict[str, str]:
    return {place.member or place.path.name: cause for place, cause in tree.faults}


def test_names_mean_nothing_and_others_are_counted(tmp_path):
    fake.write(fake.series(), tmp_path / "deep" / "in" / "here")
    (tmp_path / "notes.txt").write_text("patient was late")
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    (tmp_path / "IM0001").write_bytes(os.urandom(3000))
    (tmp_path / "scan.nii.gz").write_bytes(b"\x1f\x8b")
    tree = objects([tmp_path])
    assert (len(tree.places), tree.passed_over, tree.faults) == (6, 3, [])
    assert [path.name for path in tree.others] == ["scan.nii.gz"]


def test_a_place_is_absent(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        objects([tmp_path / "absent"])


def test_bare_data_sets_of_old_machines_are_found():
    found = names(objects([PYDICOM]))
    for name in ("ExplVR_BigEndNoMeta.dcm", "ExplVR_LitEndNoMeta.dcm", "rtstruct.dcm", "CT_small.dcm"):
        assert name in found


def test_what_should_be_dicom_and_is_not_is_a_fault(tmp_path):
    whole = fake.save(fake.plane(fake.Grid(), 0), tmp_path / "a.dcm").read_bytes()
    for name, content in {
        "empty.dcm": b"",
        "IM2": b"",
        "1.2.840.1": b"",
        "random.dcm": os.urandom(500),
        "zeros": b"\0" * 100,
        "mark": whole[:128] + b"XXXX" + whole[132:],
        "moved": b"\1" * 7 + whole,
        "stub": whole[:130],
        "gap": whole[:125] + whole[150:],
        ".hidden": b"",
        "__init__.py": b"",
        "._a.dcm": b"\0\5\26\7",
    }.items():
        (tmp_path / name).write_bytes(content)
    tree = objects([tmp_path])
    assert set(causes(tree)) == {"empty.dcm", "IM2", "1.2.840.1", "random.dcm", "zeros", "mark", "moved", "stub", "gap"}
    assert "0 bytes" in causes(tree)["IM2"]
    assert names(tree) == ["a.dcm"]
    assert tree.passed_over == 3


def test_a_file_that_was_named_is_a_fault_if_it_is_no_scan(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    assert causes(objects([tmp_path / "notes.txt"])) == {
        "notes.txt": "not DICOM; remove it, or give it the name of what it is"
    }


def test_links(tmp_path):
    """Each folder is read once; a loop ends, and is named."""
    scans = fake.write(fake.series(), tmp_path / "scans")
    (scans / "loop").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(scans)
    (tmp_path / "same").symlink_to(next(p for p in scans.iterdir() if p.is_file()))
    (tmp_path / "hard.dcm").hardlink_to(next(p for p in scans.iterdir() if p.is_file()))
    (tmp_path / "nowhere").symlink_to(tmp_path / "absent")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    tree = objects([tmp_path])
    assert len(tree.places) == 6
    told = causes(tree)
    assert "back into a folder above" in told["loop"]
    assert "leads nowhere" in told["nowhere"]
    assert "leads nowhere" in told["self"]


def test_a_pipe_blocks_nobody(tmp_path):
    os.mkfifo(tmp_path / "pipe.dcm")
    tree = objects([tmp_path])
    assert (tree.places, tree.passed_over) == ([], 1)


def test_what_may_not_be_read_is_a_fault(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "sub").mkdir()
    fake.save(fake.plane(fake.Grid(), 0), tmp_path / "a.dcm")
    monkeypatch.setattr(Path, "open", refuse)
    assert causes(objects([tmp_path])) == {"a.dcm": "can't be opened (Permission denied)"}
    monkeypatch.setattr(os, "scandir", refuse)
    assert causes(objects([tmp_path])) == {tmp_path.name: "a folder that can't be read (Permission denied)"}


def test_a_zip_is_a_folder(tmp_path):
    folder = fake.write(fake.series(), tmp_path / "scans")
    (folder / "notes.txt").write_text("hello")
    archive = fake.zipped(folder, tmp_path / "scans.zip")
    shutil.rmtree(folder)
    for tree in (objects([tmp_path]), objects([archive])):
        assert (len(tree.places), tree.passed_over, tree.faults) == (6, 1, [])
    with open_place(tree.places[0]) as file:
        assert pydicom.dcmread(file).Modality == "CT"


def test_members_that_climb_are_named_and_nothing_is_written(tmp_path):
    data = fake.save(fake.plane(fake.Grid(), 0), tmp_path / "a" / "a.dcm").read_bytes()
    archive = tmp_path / "a" / "evil.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for name in ("../climbed.dcm", "/abs.dcm", "a/../../up.dcm", "C:\\win.dcm", "fine.dcm", "..\\back.dcm"):
            opened.writestr(name, data)
        link = zipfile.ZipInfo("link.dcm")
        link.external_attr = 0o120777 << 16
        opened.writestr(link, "/etc/passwd")
        opened.writestr("empty.dcm", b"")
        opened.writestr("inner.zip", b"PK\3\4")
    tree = objects([archive])
    assert names(tree) == ["fine.dcm"]
    told = causes(tree)
    assert sum("climbs out" in cause for cause in told.values()) == 5
    assert "link" in told["link.dcm"]
    assert "0 bytes" in told["empty.dcm"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "a.dcm", "evil.zip"]


def test_broken_zips_are_named(tmp_path):
    folder = fake.write(fake.series(), tmp_path / "scans")
    whole = fake.zipped(folder, tmp_path / "w.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    tree = objects([tmp_path / "cut.zip"])
    assert "can't be opened" in next(iter(causes(tree).values()))
    damaged = bytearray(whole)
    for index in range(80, 140):  # within the first member's data
        damaged[index] ^= 0xFF
    (tmp_path / "damaged.zip").write_bytes(damaged)
    tree = objects([tmp_path / "damaged.zip"])
    assert len(tree.places) + len(tree.faults) + tree.passed_over == 6
    assert len(tree.places) >= 5


def test_members_that_share_their_bytes_are_refused(tmp_path):
    """Overlapping members say more than Deflate can pack (https://www.bamsoftware.com/hacks/zipbomb/)."""
    archive = tmp_path / "bomb.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("0.dcm", b"\0" * 1_000_000)
        for number in range(1, 50):
            info = zipfile.ZipInfo(f"{number}.dcm")
            first = opened.infolist()[0]
            info.header_offset, info.file_size = first.header_offset, first.file_size
            info.compress_size, info.CRC, info.compress_type = first.compress_size, first.CRC, first.compress_type
            opened.filelist.append(info)
            opened.NameToInfo[info.filename] = info
        opened._didModify = True
    assert "can't all come out of its bytes" in next(iter(causes(objects([archive])).values()))


def test_a_zip_member_takes_no_more_memory_than_is_free(tmp_path, monkeypatch):
    archive = tmp_path / "big.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("a.dcm", b"\0" * 128 + b"DICM" + b"\0" * (100 << 20))

    class Memory:
        available = 50 << 20

    monkeypatch.setattr("psutil.virtual_memory", Memory)
    with pytest.raises(MedlightError, match=r"takes 0\.1 GiB of memory"):
        open_place(Place(archive, "a.dcm"))
    with open_place(Place(archive, "a.dcm"), 1000) as file:
        assert len(file.read()) == 1000


def test_a_dicomdir_leads_to_its_files(tmp_path):
    index = fake.with_dicomdir(fake.series(), tmp_path / "cd")
    tree = objects([index])
    assert (len(tree.places), tree.faults) == (6, [])
    assert tree.places == objects([tmp_path]).places


def test_a_dicomdir_tells_what_is_missing(tmp_path):
    index = fake.with_dicomdir(fake.series(), tmp_path / "cd")
    objects([index]).places[2].path.unlink()
    for path in (index, tmp_path):
        tree = objects([path])
        assert len(tree.places) == 5
        assert "names 6 files, 1 of them missing" in causes(tree)["DICOMDIR"]


def test_a_dicomdir_knows_small_letters_and_leads_nowhere_else(tmp_path):
    index = fake.with_dicomdir(fake.series(), tmp_path / "cd")
    for place in objects([index]).places[:1]:
        place.path.rename(place.path.with_name(place.path.name.lower()))
    assert len(objects([index]).places) == 6
    dataset = pydicom.dcmread(index)
    fake.save(fake.plane(fake.Grid(), 0), tmp_path / "SECRET")
    for record in dataset.DirectoryRecordSequence:
        if "ReferencedFileID" in record:
            record.ReferencedFileID = ["..", "SECRET"]
    dataset.save_as(index)
    tree = objects([index])
    assert tree.places == []
    assert "outside of its own folder" in causes(tree)["DICOMDIR"]


def test_pydicoms_own_file_sets():
    tree = objects([PYDICOM / "dicomdirtests" / "DICOMDIR"])
    assert len(tree.places) == 31
    for name in ("DICOMDIR-bigEnd", "DICOMDIR-implicit", "DICOMDIR-nooffset", "DICOMDIR-reordered"):
        assert len(objects([PYDICOM / "dicomdirtests" / name]).places) >= 31
