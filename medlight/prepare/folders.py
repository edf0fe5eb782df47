"""Which scans a folder holds: files of every format that is read, and folders that hold a DICOM series."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medlight.errors import UsageError
from medlight.prepare.case import BadCase
from medlight.scans import is_scan, stem
from medlight.scans.files import shown
from medlight.scans.read import format_of

KINDS = "no scan here: NIfTI, NRRD, MetaImage, a folder, a zip or a file of DICOM, or PNG, JPEG, TIFF"
_LOOKED_AT = 8  # files: enough to see whether they are slices of one series


def scans_in(folder: Path, bad: list[BadCase]) -> dict[str, Path]:
    """The scans of a folder by name, each a file, or a sub-folder with DICOM in it; two with one name are bad.

    Hidden files are left out, and so are pictures where there is any other scan: they show it, as a rule. Raises
    UsageError where the folder is none, or holds the slices of a series instead of scans.
    """
    if not folder.is_dir():
        raise UsageError(f"{shown(folder)}: is a file; give the folder that holds the scans")
    entries = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and is_scan(path)]
    solid = [path for path in entries if format_of(path) != "raster"]
    if are_slices(loose(entries)):
        raise UsageError(f"{shown(folder)}: holds the slices of one series; give the folder above it, with one a scan")
    found: dict[str, Path] = {}
    for path in solid or entries:
        name = name_of(path)
        if name in found:
            both = f"{shown(found[name])} and {path.name} have the same name, two files for the id {name!r}; remove one"
            bad.append(BadCase(name, both))
        found[name] = path
    return found


def name_of(path: Path) -> str:
    """What a scan is called: a folder's name, or a file's without the suffix."""
    return path.name if path.is_dir() else stem(path)


def loose(paths: Sequence[Path]) -> list[Path]:
    """The DICOM files among some paths that are neither folders nor zips."""
    return [path for path in paths if path.is_file() and path.suffix.lower() != ".zip" and format_of(path) == "dicom"]


def are_slices(files: Sequence[Path]) -> bool:
    """Whether DICOM files are parts of a series, to be read together, and not a scan (or a label) each."""
    if not files:
        return False
    from medlight.scans.dicom.survey import survey

    stacks = [stack for stack in survey(list(files[:_LOOKED_AT])).stacks if stack.kind == "image"]
    return any(
        stack.verdict.status == "not-a-volume"
        or len({frame.place for frame in stack.frames}) > 1
        or any(frame.tile is not None for frame in stack.frames)
        for stack in stacks
    )
