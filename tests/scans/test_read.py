"""Which reader a path goes to, and what is a scan at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medlight.errors import UsageError
from medlight.scans import SUFFIXES, Volume, is_scan, read, stem, write_nifti
from medlight.scans.read import format_of
from tests.data import fake_dicom


@pytest.fixture
def tree(tmp_path):
    """A series folder, the same files in one folder deeper, loose files of all kinds."""
    fake_dicom.write(fake_dicom.series(), tmp_path / "series")
    fake_dicom.write(fake_dicom.series(), tmp_path / "deep" / "er")
    one = sorted((tmp_path / "series").iterdir())[0].read_bytes()
    for name in ("IM0001", "IM.1.2.840", "x.dcm", "DICOMDIR"):
        (tmp_path / name).write_bytes(one)
    fake_dicom.zipped(tmp_path / "series", tmp_path / "series.zip")
    write_nifti(Volume(np.zeros((1, 2, 3, 4), np.int16), np.eye(4)), tmp_path / "x.nii.gz")
    for name in ("notes.txt", "LICENSE", "x.csv"):
        (tmp_path / name).write_text("not a scan")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "notes.txt").write_text("nothing")
    return tmp_path


def test_what_is_a_scan(tree):
    scans = {path.name for path in tree.iterdir() if is_scan(path)}
    assert scans == {"series", "deep", "IM0001", "IM.1.2.840", "x.dcm", "DICOMDIR", "series.zip", "x.nii.gz"}
    assert not is_scan(tree / "absent.nii")
    assert {format_of(tree / name) for name in scans} == {"dicom", "nifti"}
    assert format_of(tree / "notes.txt") is None


def test_a_series_reads_alike_from_everywhere(tree):
    whole = read(tree / "series")
    for name in ("deep", "series.zip"):
        other = read(tree / name)
        np.testing.assert_array_equal(other.array, whole.array)
        np.testing.assert_array_equal(other.affine, whole.affine)


def test_foreign_files_are_a_wrong_call(tree):
    for name in ("notes.txt", "LICENSE"):
        with pytest.raises(UsageError, match=r"not a format that is read here; convert it to \.nii"):
            read(tree / name)


def test_names_without_their_suffix():
    assert {stem(Path(f"a.b{suffix}")) for suffix in SUFFIXES} == {"a.b"}
    assert {stem(Path(f"a.b{suffix.upper()}")) for suffix in SUFFIXES} == {"a.b"}


def test_importing_the_package_is_light():
    heavy = "{'torch', 'highdicom', 'SimpleITK', 'psutil', 'medlight.scans.dicom', 'medlight.scans.raster'}"
    code = f"import sys, medlight.scans, medlight.scans.headers; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
