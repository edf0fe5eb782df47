"""A DICOMDIR: the index of a file set on a CD or a stick (PS3.3 annex F, PS3.10 8.6)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medlight.errors import MedlightError
from medlight.scans.dicom.archive import reason_of
from medlight.scans.files import shown

_DIRECTORY = b"\x02\x00\x02\x00UI\x14\x001.2.840.10008.1.3.10"  # (0002,0002): Media Storage Directory Storage
_MOST_BYTES = 256 << 20


def is_index(head: bytes) -> bool:
    """Whether a file that begins so is a DICOMDIR."""
    return head[128:132] == b"DICM" and _DIRECTORY in head


def referenced(path: Path) -> tuple[list[Path], list[str]]:
    """The files that a DICOMDIR names and that are there, and what is wrong with it: files that are missing, say.

    Letters count as the same in both cases, as on the CD where the names were capitals.
    """
    try:
        names = _names(path)
    except Exception as error:  # whatever the bytes make pydicom raise
        return [], [f"a DICOMDIR that can't be read ({reason_of(error)}); give the folder without it"]
    found: list[Path] = []
    missing: list[str] = []
    outside = 0
    listings: dict[Path, dict[str, str]] = {}
    for parts in names:
        if any(part in ("", ".", "..") or "/" in part or "\\" in part or "\0" in part for part in parts):
            outside += 1
            continue
        file = _resolve(path.parent, parts, listings)
        if file is None:
            missing.append("/".join(parts))
        else:
            found.append(file)
    faults = []
    if missing:
        faults.append(f"names {len(names)} files, {len(missing)} of them missing ({missing[0]}); copy the medium again")
    if outside:
        faults.append(f"names {outside} files outside of its own folder; they are not read")
    return found, faults


def _names(path: Path) -> list[Sequence[str]]:
    """Every Referenced File ID (0004,1500), as its parts."""
    from pydicom import dcmread

    if path.stat().st_size > _MOST_BYTES:
        raise MedlightError(f"{shown(path)}: over {_MOST_BYTES >> 20} MiB")
    dataset = dcmread(path, specific_tags=["DirectoryRecordSequence"])
    names: list[Sequence[str]] = []
    for record in dataset.get("DirectoryRecordSequence") or []:
        parts = record.get("ReferencedFileID")
        if parts:
            names.append([parts] if isinstance(parts, str) else list(map(str, parts)))
    return names


def _resolve(folder: Path, parts: Sequence[str], listings: dict[Path, dict[str, str]]) -> Path | None:
    for part in parts:
        if folder not in listings:
            listings[folder] = {child.name.lower(): child.name for child in folder.iterdir()} if folder.is_dir() else {}
        name = part if (folder / part).exists() else listings[folder].get(part.lower())
        if name is None:
            return None
        folder = folder / name
    return folder if folder.is_file() else None
