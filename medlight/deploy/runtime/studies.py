"""What is to be predicted: one scan, a folder of scans, a tree of studies, or a manifest."""

from __future__ import annotations

import itertools
import os
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medlight.deploy.runtime.journal import Form, Item, content_of
from medlight.errors import MedlightError, UsageError
from medlight.prepare.contents import sha256
from medlight.prepare.folders import KINDS, are_slices, loose, name_of, scans_in
from medlight.scans import SUFFIXES, is_scan
from medlight.scans.files import apart, shown
from medlight.scans.nifti import NIFTI_SUFFIXES
from medlight.scans.read import format_of

if TYPE_CHECKING:
    from medlight.deploy.runtime.checked import Source
    from medlight.prepare.case import BadCase
    from medlight.scans.dicom.frames import Stack

_MANIFESTS = (".csv", ".json")
_VOLUMES = (*NIFTI_SUFFIXES, ".nrrd", ".nhdr", ".mha", ".mhd")


@dataclass(frozen=True)
class Asked:
    """What is written of each scan. form: of label maps; None gives a DICOM-SEG of DICOM, and NIfTI of the rest."""

    out: Path
    truth: Path | None = None
    form: Form | None = None

    @property
    def one_file(self) -> Form | None:
        """What ``out`` says by its name that it is to be, if it is one file."""
        name = self.out.name.lower()
        return "nifti" if name.endswith(NIFTI_SUFFIXES) else "dicom-seg" if name.endswith(".dcm") else None


@dataclass(frozen=True)
class _Input:
    """A scan that was found: what it is called, its contrasts, a truth that the manifest names."""

    name: str
    images: Mapping[str, Source]
    listed: bool = False
    truth: Path | None = None


def items_of(source: Path, asked: Asked) -> list[Item]:
    """List what is to be predicted.

    A folder of DICOM with several series gives each volume by itself; localizers, captures, segmentations and reports
    in it are passed over. DICOM that can't be read to the end is listed with its fault. Raises UsageError where there
    is nothing, names clash, or an input would be overwritten.
    """
    inputs = _inputs(source)
    _check_out(asked, len(inputs))
    found: dict[str, Item] = {}
    for entry in inputs:
        item = _item(entry, asked, found)
        if item.name in found:
            both = f"{_where(found[item.name].source)} and {_where(item.source)}"
            raise UsageError(f"{both} have the same name, so would their outputs; mend: rename one")
        found[item.name] = item
    if not found:
        inside = nested(source)
        deeper = f"; {len(inside)} lie in sub-folders, as {inside[0]}" if inside else ""
        raise UsageError(f"{source}: {KINDS}{deeper}")
    check_apart(list(found.values()))
    return list(found.values())


def passed_over(source: Path, items: Sequence[Item]) -> list[Path]:
    """The files that a folder of scans holds besides: what is no scan, pictures beside volumes, and volumes further in.

    In sub-folders `items_of` looks for DICOM alone, for the others may be labels.
    """
    used = {image for item in items for image in item.images.values() if isinstance(image, Path)}
    beside = source.iterdir() if any(image.parent == source for image in used) else ()
    inside = (path for path in nested(source) if not any(path.is_relative_to(image) for image in used))
    return sorted({path for path in (*beside, *inside) if path.is_file() and path not in used and path.name[0] != "."})


def nested(folder: Path) -> list[Path]:
    """The volumes that are not DICOM in the sub-folders of a folder."""
    inside = folder.glob("*/**/*") if folder.is_dir() else ()
    return sorted(path for path in inside if path.name.lower().endswith(_VOLUMES) and path.is_file())


def as_item(name: str, source: Source, asked: Asked) -> Item:
    """One scan by itself, as `items_of` would list it, with a fault where its files can't be read or are gone.

    name: of a file; a DICOM series goes by its content.
    """
    return _item(_Input(name, {"image": source}), asked, {})


def _item(entry: _Input, asked: Asked, others: Container[str]) -> Item:
    try:
        name, fault = _nameless(entry, others), ""
    except MedlightError as error:
        name, fault = _free("unreadable", others), " ".join(str(error).split())
    truth = _truth(asked.truth, entry.name) or entry.truth
    form = _form(entry, asked)
    output = asked.out if asked.one_file else asked.out / f"{name}{'.dcm' if form == 'dicom-seg' else '.nii.gz'}"
    return Item(name, entry.images, output, truth, fault)


def _form(entry: _Input, asked: Asked) -> Form:
    wanted = asked.one_file or asked.form
    if wanted == "dicom-seg" and not is_dicom(entry):
        raise UsageError(
            f"{entry.name}: a DICOM-SEG refers to DICOM images, and this scan is none; mend: --format nifti, or an OUT "
            "that is a folder or a .nii.gz"
        )
    return wanted or ("dicom-seg" if is_dicom(entry) else "nifti")


def is_dicom(entry: _Input | Item) -> bool:
    """Whether a scan's first contrast is DICOM."""
    source = next(iter(entry.images.values()))
    return not isinstance(source, Path) or format_of(source) == "dicom"


def _nameless(entry: _Input, others: Container[str]) -> str:
    """What a scan's outputs are called: as its file is, or as the manifest says; DICOM by its content, as in a fit.

    The name of a DICOM folder is a patient's as a rule: it is shown in the terminal and stored nowhere. Raises
    MedlightError that names what can't be read.
    """
    if entry.listed or not is_dicom(entry):
        return entry.name
    try:
        content = [[contrast, content_of(image)] for contrast, image in entry.images.items()]
    except OSError as error:  # a folder that went away while it was listed
        where = shown(_where(next(iter(entry.images.values()))))
        raise MedlightError(f"{where}: can't be read ({error.strerror}); check that it is still there") from None
    return _free(f"case-{sha256(content)[:10]}", others)


def _free(name: str, others: Container[str]) -> str:
    """Return a name that no other scan has: of several the first is called so, the next ``name+1``."""
    copies = (f"{name}+{number}" for number in itertools.count(1))
    return name if name not in others else next(copy for copy in copies if copy not in others)


def _inputs(source: Path) -> list[_Input]:
    if source.is_dir():
        if are_slices(loose(sorted(source.iterdir()))):
            return _volumes(source.resolve().name, source)
        unclear: list[BadCase] = []
        scans = scans_in(source, unclear)
        for bad in unclear:
            raise UsageError(bad.reason)
        others = (path for path in sorted(source.iterdir()) if path not in scans.values() and path.name[0] != ".")
        found = [*scans.items(), *((path.name, path) for path in others if _closed(path))]
        return [entry for name, scan in found for entry in _volumes(name, scan)]
    if source.suffix.lower() in _MANIFESTS:
        return _listed(source)
    if not source.is_file():
        raise UsageError(f"{source}: no such file or folder")
    return _volumes(name_of(source), source)


def _closed(folder: Path) -> bool:
    """Whether a path is a folder that can't be listed to the end: there may be a study in it, which is then failed."""
    errors: list[OSError] = []
    if folder.is_dir():
        for _ in os.walk(folder, onerror=errors.append):
            pass
    return bool(errors)


def _volumes(name: str, scan: Path) -> list[_Input]:
    """One input, or one for each volume of a DICOM folder, zip or file that holds several."""
    if format_of(scan) == "dicom":
        from medlight.scans.dicom.survey import survey

        volumes = [stack for stack in survey([scan]).stacks if is_meant(stack)]
        if len(volumes) > 1:
            return [_Input(name, {"image": stack}) for stack in volumes]
    return [_Input(name, {"image": scan})]


def is_meant(stack: Stack) -> bool:
    """Whether someone may want a stack predicted: no segmentation, report, localizer or capture.

    What was meant for a volume and is none is: it fails by its name.
    """
    first = stack.frames[0]
    if stack.kind != "image":
        return False
    placed = first.position is not None and "LOCALIZER" not in first.variant.split("\\")
    return stack.verdict.status != "not-a-volume" or placed


def _listed(manifest: Path) -> list[_Input]:
    from medlight.prepare import Manifest

    listed = Manifest(str(manifest), unlabelled=True).cases()
    for bad in listed.bad:
        raise MedlightError(bad.reason)
    return [
        _Input(
            case.id,
            {name: file for name, file in case.images.items() if isinstance(file, Path)},
            listed=True,
            truth=case.label if isinstance(case.label, Path) else None,
        )
        for case in listed.cases
    ]


def _truth(folder: Path | None, name: str) -> Path | None:
    if folder is None:
        return None
    if folder.is_file():
        return folder
    if not folder.is_dir():
        raise UsageError(f"--truth {folder}: no such folder")
    files = [file for suffix in SUFFIXES if (file := folder / f"{name}{suffix}").is_file()]
    files += [folder / name] if is_scan(folder / name) else []
    return files[0] if files else None


def _check_out(asked: Asked, count: int) -> None:
    """Raise UsageError for an OUT that can't hold what is written."""
    out = asked.out
    if not asked.one_file and out.name.lower().endswith(SUFFIXES) and not out.is_dir():
        raise UsageError(f"{out}: a label map is written as NIfTI or DICOM-SEG; name a .nii.gz, a .dcm, or a folder")
    if asked.one_file and asked.form not in (None, asked.one_file):
        raise UsageError(f"{out}: is no {asked.form}, as --format says; mend: name it so, or leave --format out")
    if count > 1 and asked.one_file:
        raise UsageError(f"{out}: {count} scans need a folder to be written to")
    if asked.truth and asked.truth.is_file() and count > 1:
        raise UsageError(f"--truth {asked.truth}: {count} scans need a folder of label maps")


def check_apart(items: Sequence[Item]) -> None:
    """Raise UsageError where an output would overwrite an input, or lie in it."""
    sources = [source for item in items for source in item.images.values()]
    read = {file.resolve() for file in [*sources, *(item.truth for item in items)] if isinstance(file, Path)}
    for item in items:
        for file in item.files:
            if file.resolve() in read:
                raise UsageError(f"{file} would be overwritten; mend: give another OUT")
        for source in item.images.values():
            if isinstance(source, Path) and source.is_dir():
                apart(source, item.output)
            elif not isinstance(source, Path):
                apart(_where(source), item.output)


def _where(source: Source) -> Path:
    """The file of a scan, or the folder or zip that its stack lies in."""
    return source if isinstance(source, Path) else source.frames[0].place.home
