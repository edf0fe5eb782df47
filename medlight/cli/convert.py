"""``medlight data convert``: a tree of DICOM files to NIfTI, or a label map to a DICOM-SEG."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medlight.cli.mends import add_on
from medlight.errors import MedlightError, UsageError

if TYPE_CHECKING:
    from medlight.scans import Volume
    from medlight.scans.convert import Converted
    from medlight.scans.dicom.mend import Mends
    from medlight.scans.dicom.survey import Survey

HELP = "write DICOM volumes as NIfTI, or a label map as DICOM-SEG"
EPILOG = """\
example:
  medlight data convert scans out
  medlight data convert scans out --on gap=interpolate --on tilt=deskew --workers 4
  medlight data convert mask.nii.gz mask.dcm --like scans/series

Each volume becomes OUT/ID.nii.gz; the ID is made of the file's UIDs and is the same on every machine. DICOM-SEG and
RTSTRUCT become label maps on their image's grid, OUT/labels/ID.nii.gz; where regions overlap, each becomes a mask.
What was written before from the same content with the same mends is not written again.

--like takes a label map on the series' grid, of whole numbers. What DICOM requires of the patient and the study (name,
number, birth date, sex, referring physician, accession number) is copied from the series into the DICOM-SEG; `medlight
data deidentify` takes it out again. A file that this command didn't write is not overwritten.

Exit code 1 where a volume or a label could not be written."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``medlight data convert``."""
    parser.add_argument("source", metavar="IN", type=Path, help="a folder, zip or DICOMDIR; with --like a label map")
    parser.add_argument("out", metavar="OUT", type=Path, help="a folder outside IN; with --like a .dcm file")
    parser.add_argument(
        "--like",
        metavar="SERIES",
        type=Path,
        help="write IN as a DICOM-SEG of this DICOM series, with its patient's name and number",
    )
    add_on(parser)
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one a CPU)")


def run(args: argparse.Namespace) -> int:
    """Convert; returns 1 where something that is a volume or a label was not written, or nothing was."""
    from medlight.cli.deidentify import processes

    # With two, a decoder that dies of broken pixels takes no more than its worker along.
    workers = processes(args.workers, 2)
    if args.like:
        return _segmentation(args)
    from medlight.cli.output import write_json
    from medlight.cli.progress import bar
    from medlight.scans.convert import Converted, convert
    from medlight.scans.dicom.mend import Mends
    from medlight.scans.dicom.survey import survey

    mends = Mends.parse(args.on)
    _check(args.source, args.out)
    with bar("reading headers", 0) as progress:
        found = survey([args.source], workers=workers, progress=progress)
    if not found.stacks:
        write_json(args.json, [])
        raise MedlightError(f"{args.source}: holds no DICOM file{_passed_over(found)}")
    _make(args.out)
    with bar("converting", len(found.stacks)) as progress:
        done = convert(found.stacks, args.out, mends, workers, progress)
    others = [Converted(stack) for stack in found.stacks if stack.kind == "other"]
    facts = [_facts(one, mends) for one in [*done, *others]]
    _show(args, [*done, *others], facts, _passed_over(found))
    write_json(args.json, [_entry(one, told) for one, told in zip([*done, *others], facts, strict=True)])
    return 0 if any(one.files for one in done) and not any(map(failed, done)) else 1


def failed(one: Converted) -> bool:
    """Whether something that ought to be written was not: a localizer or a screen capture is no volume."""
    return not one.files and one.stack.kind != "other" and one.stack.verdict.status != "not-a-volume"


def _facts(one: Converted, mends: Mends) -> dict[str, Any]:
    """What `data check` says of a stack with the same mends; of one that was split, what it was."""
    from medlight.cli.check import after
    from medlight.scans.dicom.survey import as_json

    pieces = after(one.stack, mends)
    return pieces[0][1] if len(pieces) == 1 else as_json(one.stack)


def _show(args: argparse.Namespace, done: list[Converted], facts: list[dict[str, Any]], passed_over: str) -> None:
    """The table of ``data check`` with what was written and where from; then the reasons for what was not."""
    from medlight.cli.check import where
    from medlight.cli.table import printable, show
    from medlight.scans.dicom.survey import row

    if args.json != "-":
        columns = (
            "case",
            "modality",
            "files",
            "shape",
            "spacing",
            "orientation",
            "verdict",
            "detail",
            "written",
            "from",
        )
        told = [
            one.stack.verdict.told if found["status"] == one.stack.verdict.status else found["detail"]
            for one, found in zip(done, facts, strict=True)
        ]
        rows = [row(found, detail) for found, detail in zip(facts, told, strict=True)]
        show(
            columns,
            [(*texts, " ".join(one.files) or "-", where(one.stack)) for texts, one in zip(rows, done, strict=True)],
        )
    for one in done:
        if failed(one) and one.stack.verdict.status != "unreadable":  # the table says that of those
            print(f"not written: {printable(one.reason)}", file=sys.stderr)
        if args.json != "-" and sys.stdout.isatty():
            for line in _legend(one):
                print(printable(line))
    written, reused = sum(bool(one.files) for one in done), sum(one.reused for one in done)
    before = f" ({reused} of them before: same content, same mends)" if reused else ""
    print(f"{written} written to {args.out}{before}{passed_over}", file=sys.stderr)


def _passed_over(found: Survey) -> str:
    """What was no DICOM, by kind."""
    from medlight.scans.read import format_of

    known = {"nifti": "NIfTI", "nrrd": "NRRD", "metaimage": "MetaImage", "raster": "picture"}
    counts = Counter(f"{known.get(format_of(path) or '', 'other')} file" for path in found.others)
    counts += Counter({"file": found.passed_over})
    parts = [f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in counts.items()]
    return f"; {', '.join(parts)} passed over" if parts else ""


def _legend(one: Converted) -> list[str]:
    """Which value of a label map is what: the source's names, which are free text and never kept, and coded terms."""
    names = dict(one.names)
    lines: dict[str, list[str]] = {}
    for region in one.regions:
        name = names.get(region["number"]) or (region["code"] or ["", "", ""])[2] or f"number {region['number']}"
        code = f" ({region['code'][1]} {region['code'][0]} {region['code'][2]})" if region["code"] else ""
        lines.setdefault(region["file"], []).append(f"{region['value']} is {name}{code}")
    return [f"{file}: {', '.join(values)}" for file, values in lines.items()]


def _entry(one: Converted, facts: dict[str, Any]) -> dict[str, Any]:
    """What a program may keep: numbers, codes and ids, no name of an input, of a region or of a person."""
    from medlight.scans.files import nameless

    reason = one.reason
    for place in {frame.place for frame in one.stack.frames} if reason else ():
        reason = nameless(nameless(reason, place.path, place.member), place.path.parent)
    done = {"written": list(one.files), "regions": list(one.regions), "reused": one.reused, "mended": list(one.notes)}
    return {**facts, **done, "reason": reason}


def _check(source: Path, out: Path) -> None:
    from medlight.scans.files import apart

    if not source.exists():
        raise UsageError(f"{source}: no such file or folder")
    apart(source, out)
    if out.suffix.lower() == ".dcm" and not out.is_dir():
        raise UsageError(f"{out}: for a DICOM-SEG of a label map, give --like SERIES, the series it was drawn on")
    there = next(place for place in (out, *out.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UsageError(f"{out}: can't be made in {there}; mend: give another OUT")


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out}: can't be made ({error.strerror}); mend: give another OUT") from None


def _segmentation(args: argparse.Namespace) -> int:
    """Write one label map as a DICOM-SEG."""
    from medlight.cli.output import write_json
    from medlight.prepare import Label
    from medlight.scans import read
    from medlight.scans.dicom_seg import write_seg
    from medlight.scans.files import apart
    from medlight.scans.values import values_of

    if args.out.suffix.lower() != ".dcm":
        raise UsageError(f"{args.out}: a DICOM-SEG is one file; call it .dcm")
    if args.on:
        raise UsageError("--on: there is nothing to mend in a label map")
    if args.out.exists():
        apart(args.like, args.out)
        if not _is_ours(args.out):
            raise UsageError(f"{args.out}: is there, and no DICOM-SEG of medlight; mend: give another OUT or remove it")
    mask = _label_map(read(args.source, indices=True), args.source)
    values = [int(value) for value in values_of(mask.array) if value]
    write_seg(mask, args.like, args.out, [Label(value, f"label {value}") for value in values])
    if args.json != "-":
        print(f"{args.out}: {len(values)} segment{'s' if len(values) != 1 else ''}")
    write_json(args.json, {"file": str(args.out), "values": values})
    return 0


def _label_map(volume: Volume, source: Path) -> Volume:
    """The volume with whole numbers; MedlightError, naming the file, where its values are no labels."""
    from dataclasses import replace

    import numpy as np

    from medlight.scans.seg_writing import label_fault

    array = volume.array
    if array.dtype.kind == "f":
        odd = array[~(array == np.rint(array)) | ~np.isfinite(array)]
        if odd.size:
            raise MedlightError(f"{source}: {odd[0]:.6g} is no label, these are whole numbers; give the mask")
        far = array[np.abs(array) > np.iinfo(np.int32).max]
        array = array.astype(np.int32) if not far.size else array
    fault = label_fault(array)
    if fault:
        raise MedlightError(f"{source}: {fault}")
    return replace(volume, array=array)


def _is_ours(path: Path) -> bool:
    """Whether a file is a DICOM-SEG that this command wrote, so that writing it again loses nothing."""
    import warnings

    import pydicom

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote values, which may be a patient's
            found = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["Modality", "Manufacturer"])
            return bool(found.get("Modality") == "SEG" and found.get("Manufacturer") == "medlight")
    except Exception:  # pydicom: whatever the bytes make it raise
        return False
