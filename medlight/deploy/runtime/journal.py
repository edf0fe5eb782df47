"""What is to be predicted, and what was predicted before: a stopped run goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medlight.deploy.bundle import DESCRIPTION, sha256
from medlight.deploy.runtime.predictor import Predictor
from medlight.errors import MedlightError
from medlight.prepare.digests import content_digest
from medlight.scans.files import nameless, replacing, shown

if TYPE_CHECKING:
    from medlight.deploy.runtime.checked import Source

JOURNAL = "predictions.json"
Result = dict[str, Any]
Form = Literal["nifti", "dicom-seg"]
_SUFFIXES = (".nii.gz", ".nii", ".dcm")


@dataclass(frozen=True)
class Item:
    """One thing to predict: its name, its contrasts (files, folders or stacks of DICOM), what to write, the truth.

    output: the label map, ``.dcm`` for a DICOM-SEG; the other files lie beside it. Of a class only those are written.
    fault: why it can't be predicted, in one line for a person, where that was found out before; else empty.
    """

    name: str
    images: Mapping[str, Source]
    output: Path
    truth: Path | None = None
    fault: str = ""

    @property
    def source(self) -> Source:
        """The first contrast, whose grid the label map has."""
        return next(iter(self.images.values()))

    @property
    def form(self) -> Form:
        """What the label map is written as."""
        return "dicom-seg" if self.output.suffix.lower() == ".dcm" else "nifti"

    def beside(self, ending: str) -> Path:
        """Return the file beside the label map with another ending."""
        name = self.output.name
        ends = next((suffix for suffix in _SUFFIXES if name.lower().endswith(suffix)), "")
        return self.output.with_name(name[: len(name) - len(ends)] + ending)

    @property
    def files(self) -> list[Path]:
        """All that may be written."""
        return [self.output, *map(self.beside, (".png", "_probabilities.nii.gz", "_sr.json"))]

    def nameless(self, error: str) -> str:
        """What is kept of a failure: a file's name may be a patient's, and is only shown."""
        for source in self.images.values():
            if isinstance(source, Path):
                if error.startswith((f"{shown(source)}/", f"{source}/")):  # a file in a folder
                    error = error.partition(": ")[2]
                error = nameless(error, source)
                continue
            places = dict.fromkeys(frame.place for frame in source.frames)
            for place in places:
                error = nameless(error, place.path, place.member)
            for folder in dict.fromkeys(place.home for place in places):
                error = nameless(error, folder)
        return error


class Journal:
    """What was predicted in a folder, from what, with what: the same again needs no work.

    Each entry is written after the files of its case are whole.
    keeps: what was written for one file is never replaced by what is predicted of another. Each entry then has a digest
    of where its file lies, so that it is the same one after a restart.
    """

    def __init__(self, folder: Path, keeps: bool = False) -> None:
        self._file, self._keeps = folder / JOURNAL, keeps
        try:
            self._entries: dict[str, Result] = json.loads(self._file.read_text())
        except (OSError, ValueError):  # none yet, or not ours: everything is predicted
            self._entries = {}

    def find(self, item: Item, key: str) -> Result | None:
        """Return the result of an equal prediction whose files are all there.

        Raises MedlightError where a prediction would replace another file's, and the journal keeps those.
        """
        entry = self._entries.get(item.name, {})
        there = all((self._file.parent / name).is_file() for name in entry.get("files", ()))
        if entry.get("key") != key or not there:
            if self._keeps:
                self._check_free(item)
            return None
        place = _place(item)
        if self._keeps and entry.get("place") != place:  # the folder was moved, or an earlier version told no place
            entry["place"] = place
            self._save()
        return dict(entry["result"])

    def _check_free(self, item: Item) -> None:
        """Raise MedlightError where a file that may be written is the result of something else."""
        place = _place(item)
        where = shown(item.source) if isinstance(item.source, Path) else item.name
        for name, entry in self._entries.items():
            if name == item.name and entry.get("place", place) == place:  # earlier versions told no place
                continue
            for file in item.files:
                if file.name in entry["files"] and file.exists():
                    raise MedlightError(f"{where}: {file.name} is the result of another file; mend: rename this one")

    def add(self, item: Item, key: str, files: Sequence[Path], result: Result) -> None:
        """Write down a finished case; what an earlier prediction left besides is of another model, and goes."""
        names = [file.name for file in files]
        for stale in set(self._entries.get(item.name, {}).get("files", ())) - set(names):
            (self._file.parent / stale).unlink(missing_ok=True)
        place = {"place": _place(item)} if self._keeps else {}
        self._entries[item.name] = {"key": key, "files": names, "result": result, **place}
        self._save()

    def _save(self) -> None:
        with replacing(self._file) as temporary:
            temporary.write_text(json.dumps(self._entries, indent=1) + "\n")


def _place(item: Item) -> str:
    """Digest of where the files of an item lie; empty for stacks of DICOM, which go by their content."""
    paths = [str(source.resolve()) for source in item.images.values() if isinstance(source, Path)]
    return hashlib.sha256(os.fsencode("\n".join(paths))).hexdigest() if paths else ""


def content_of(source: Source) -> str:
    """Digest of what is predicted: of a file or folder, or of the files of a stack that lies among others."""
    if isinstance(source, Path):
        return content_digest(source) if source.exists() else "absent"
    places = dict.fromkeys(frame.place.path for frame in source.frames)
    digests = sorted(content_digest(file) for file in places)
    return hashlib.sha256("\n".join([*digests, source.id]).encode()).hexdigest()


def key_of(predictor: Predictor, item: Item, probabilities: bool, force: bool) -> str:
    """Digest of all that decides a result: the bundle, the files' content, what is asked for."""
    parts = [sha256(predictor.bundle.root / DESCRIPTION), str(probabilities), item.output.name]
    parts += [content_of(source) for source in [*item.images.values(), *([item.truth] if item.truth else [])]]
    mends = predictor.preparation.mends
    parts += [json.dumps(mends.to_dict(), sort_keys=True)] if mends else []
    parts += ["forced"] if force else []
    parts += [predictor.asked] if predictor.asked else []  # of the bundle's models none is better, unless one is named
    return hashlib.sha256(os.fsencode("\n".join(parts))).hexdigest()
