"""Reading a scan, whatever its format."""

from __future__ import annotations

from pathlib import Path

from medlight.errors import MedlightError, UsageError
from medlight.scans.files import shown
from medlight.scans.nifti import read_nifti
from medlight.scans.volume import Volume

SUFFIXES = (".nii.gz", ".nii")


def stem(path: Path) -> str:
    """Return a file's name without the suffix of a scan (``.nii.gz`` counts as one)."""
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def read(path: Path) -> Volume:
    """Read a scan by its suffix.

    Raises UsageError for a format that is not read, MedlightError (naming the file and the mend) where the file is
    absent, empty, unreadable, holds no real numbers, or doesn't say where its voxels lie.
    """
    path = Path(path)
    if not path.name.lower().endswith(SUFFIXES):
        raise UsageError(f"{shown(path)}: not a format that is read here; convert it to {' or '.join(SUFFIXES)}")
    if not path.is_file():
        raise MedlightError(f"{shown(path)}: no such file; restore it or take it off the list")
    if path.stat().st_size == 0:
        raise MedlightError(f"{shown(path)}: the file is empty (0 bytes); copy it again or remove it")
    return read_nifti(path)
