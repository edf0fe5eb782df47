"""Which DICOM objects lie in folders, zips and file sets. Names mean little: the first bytes of a file decide."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Literal

from medlight.errors import UsageError
from medlight.scans.dicom.archive import HEAD_BYTES, members, open_place, reason_of
from medlight.scans.dicom.fileset import is_index, referenced
from medlight.scans.dicom.frames import Place
from medlight.scans.files import shown
from medlight.scans.read import SUFFIXES

__all__ = ["Tree", "objects", "open_place"]

Identity = tuple[int, int]  # device and number of a file or folder

_SUFFIXES = (".dcm", ".dicom", ".dic", ".ima", "")
_OTHERS = tuple(suffix for suffix in SUFFIXES if suffix not in (*_SUFFIXES, ".zip"))
_VALUE_TYPES = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()
)
_LONG_FOR_FIRST = 1 << 12  # the first element of a data set is a character set, a date or a UID: a few bytes


@dataclass
class Tree:
    """What was found.

    places: DICOM objects in the order of their names; a file with several names counts once.
    passed_over: how many files are of another kind.
    faults: what should be DICOM and can't be read, or is not there, each with one sentence that says why.
    others: scans of other formats (NIfTI, NRRD, ...), which are not among those passed over.
    """

    places: list[Place] = field(default_factory=list)
    passed_over: int = 0
    faults: list[tuple[Place, str]] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)


def objects(paths: Sequence[Path]) -> Tree:
    """Find the DICOM objects below folders, in zips, behind a DICOMDIR, or given one by one.

    Links are followed, each folder once; a link back into a folder above is a fault. A file is DICOM if it has the mark
    of PS3.10 7.1, or begins as a bare data set does. Raises UsageError where a path is absent.
    """
    tree = Tree()
    seen: set[Identity] = set()
    folders: set[Identity] = set()
    for path in map(Path, paths):
        if not path.exists():
            raise UsageError(f"{shown(path)}: no such file or folder")
        if path.is_dir():
            for file in _files(path, tree, folders):
                _add(file, tree, seen)
        else:
            _add(path, tree, seen, given=True)
    return tree


def _files(root: Path, tree: Tree, seen: set[Identity]) -> Iterator[Path]:
    """Regular files below a folder, in the order of their names; nothing is opened that could block, as a pipe does."""
    waiting: list[tuple[Path, frozenset[Identity]]] = [(root, frozenset())]
    while waiting:
        folder, above = waiting.pop()
        try:
            state = folder.stat()
            identity = (state.st_dev, state.st_ino)
            if identity in above:
                tree.faults.append((Place(folder), "a link back into a folder above it; it is not followed"))
            if identity in seen:
                continue
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            tree.faults.append((Place(folder), f"a folder that can't be read ({reason_of(error)})"))
            continue
        seen.add(identity)
        below = []
        for entry in entries:
            match _kind(entry):
                case "folder":
                    below.append((folder / entry.name, above | {identity}))
                case "file":
                    yield folder / entry.name
                case "dead":
                    dead = "a link that leads nowhere; fetch what it stands for"
                    tree.faults.append((Place(folder / entry.name), dead))
                case _:
                    tree.passed_over += 1
        waiting += reversed(below)


def _kind(entry: os.DirEntry[str]) -> Literal["folder", "file", "dead", "other"]:
    """What an entry of a folder is, or what it leads to."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
    except OSError:  # a link to itself
        return "dead"
    return "dead" if entry.is_symlink() and not os.path.exists(entry.path) else "other"


def _add(path: Path, tree: Tree, seen: set[Identity], given: bool = False) -> None:
    """Put a file where it belongs. given: named by the user, so that it should be a scan."""
    try:
        with path.open("rb") as file:
            state = os.fstat(file.fileno())
            head = file.read(HEAD_BYTES)
    except OSError as error:
        tree.faults.append((Place(path), f"can't be opened ({reason_of(error)})"))
        return
    identity = (state.st_dev, state.st_ino)
    if identity in seen and state.st_ino:  # some network drives number no files
        return
    seen.add(identity)
    if is_index(head):
        _add_file_set(path, tree, seen, given)
    elif head[:2] == b"PK" and (given or path.suffix.lower() == ".zip"):
        _add_zip(path, tree)
    else:
        _sort(Place(path), path, head, tree, given)


def _add_file_set(path: Path, tree: Tree, seen: set[Identity], given: bool) -> None:
    """A DICOMDIR: its files, where it was given itself; in a folder they are found anyway. It tells what is missing."""
    found, faults = referenced(path)
    tree.faults += [(Place(path), fault) for fault in faults]
    if given:
        for file in dict.fromkeys(found):
            _add(file, tree, seen)


def _add_zip(path: Path, tree: Tree) -> None:
    found, faults = members(path)
    tree.faults += [(Place(path, name), fault) for name, fault in faults]
    for name, head in found:
        if not is_index(head):
            _sort(Place(path, name), PurePath(name), head, tree, given=False)


def _sort(place: Place, name: PurePath, head: bytes, tree: Tree, given: bool) -> None:
    named = _suffix(name) in _SUFFIXES and not name.name.startswith(".")
    if is_dicom(head):
        tree.places.append(place)
    elif not place.member and place.path.name.lower().endswith(_OTHERS):
        tree.others.append(place.path)
    elif not head and named:
        tree.faults.append((place, "empty (0 bytes); copy it again or remove it"))
    elif head[132:138] == b"\x02\x00\x00\x00UL" or b"DICM\x02\x00" in head or (named and _was_dicom(head)):
        tree.faults.append((place, "its first bytes are damaged; copy it again or remove it"))
    elif given or (named and _suffix(name)):
        tree.faults.append((place, "not DICOM; remove it, or give it the name of what it is"))
    else:
        tree.passed_over += 1


def _was_dicom(head: bytes) -> bool:
    """Whether an empty preamble is all there is, with the start of DICOM's mark, or is followed by UIDs of DICOM."""
    is_stub = not head.rstrip(b"DICM").strip(b"\0")
    return is_stub or (not head[:120].strip(b"\0") and b"1.2.840.10008." in head)


def _suffix(name: PurePath) -> str:
    """A suffix in small letters; a UID's last number is none."""
    return "" if name.suffix[1:].isdigit() else name.suffix.lower()


def is_dicom(head: bytes) -> bool:
    """Whether a file that begins so is DICOM: by its mark, or as a bare data set, which old machines wrote."""
    return head[128:132] == b"DICM" or _is_bare(head, "little") or _is_bare(head, "big")


def _is_bare(head: bytes, order: Literal["little", "big"]) -> bool:
    """Whether an element of group 2 or 8 comes first, with a type and a length that it may have."""
    if len(head) < 16:
        return False
    group, element, short, long = (int.from_bytes(head[a:b], order) for a, b in ((0, 2), (2, 4), (6, 8), (4, 8)))
    if group not in (0x0002, 0x0008) or element > 0x0070:
        return False
    if head[4:6] in _VALUE_TYPES:
        return short < _LONG_FOR_FIRST
    return order == "little" and long < _LONG_FOR_FIRST and long % 2 == 0
