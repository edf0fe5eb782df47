"""What cases hold: one digest each, which names them in the store, and in runs where a file's name must not."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medlight.prepare.case import ArrayItem, BadCase, Case, FileRef, FrameItem, file_of
from medlight.prepare.digests import file_digests
from medlight.scans.files import shown
from medlight.scans.read import format_of


def identified(cases: Sequence[Case], memory: Path) -> tuple[list[tuple[Case, str]], list[BadCase]]:
    """Return each case with the digest of its content, and those whose files are not all there.

    A DICOM case that no manifest names gets a digest of its images for an id: its folder is often called by a patient's
    name, and a digest is the same on every machine. memory: see `file_digests`.
    """
    refs = {case.id: [*case.images.values(), *([case.label] if case.label else [])] for case in cases}
    files = file_digests((file_of(ref) for entry in refs.values() for ref in entry), memory)
    found, absent, copies = [], [], Counter[str]()
    for case in cases:
        gone = [file_of(ref) for ref in refs[case.id] if file_of(ref) not in files]
        if gone:
            reason = f"{shown(gone[0])}: no such file; restore it, or set on_bad_case: skip"
            absent.append(BadCase(case.id, reason))
            continue
        images = [[name, _digest(ref, files)] for name, ref in case.images.items()]
        label = _digest(case.label, files) if case.label else None
        if case.private and any(format_of(file_of(ref)) == "dicom" for ref in case.images.values()):
            name = f"case-{sha256(images)[:10]}"
            copies[name] += 1
            case = replace(case, id=name if copies[name] == 1 else f"{name}+{copies[name] - 1}", private=False)
        found.append((case, sha256([images, label])))
    return found, absent


def sha256(value: object) -> str:
    """Digest of a plain value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _digest(ref: FileRef, files: dict[Path, str]) -> str:
    match ref:
        case ArrayItem():
            return f"{files[ref.path]}/{ref.key}/{ref.index}"
        case FrameItem():
            return f"{files[ref.path]}/frame {ref.frame}"
        case _:
            return files[ref]
