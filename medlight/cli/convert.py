"""``medlight data convert``: a tree of DICOM files to NIfTI, or a label map to a DICOM-SEG."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medlight.cli.mends import add_on
from medlight.errors import UsageError

if TYPE_CHECKING:
    from medlight.scans.convert import Converted

HELP = "write DICOM volumes as NIfTI, or a label map as DICOM-SEG"
EPILOG = """\
example:
  medlight data convert scans out
  medlight data convert scans out --on gap=interpolate --on tilt=deskew --workers 4
  medlight data convert mask.nii.gz mask.dcm --like scans/series

Each volume becomes OUT/ID.nii.gz; the ID is made of the file's UIDs and is the same on every machine. DICOM-SEG and
RTSTRUCT become label maps on their image's grid, OUT/labels/ID.nii.gz; where regions overlap, each becomes a mask.
What was written before from the same content with the same mends is not written again.
Exit code 1 where a volume or a label could not be written."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``medlight data convert``."""
    parser.add_argument("source", metavar="IN", type=Path, help="a folder, zip or DICOMDIR; with --like a label map")
    parser.add_argument("out", metavar="OUT", type=Path, help="a folder outside IN; with --like a .dcm file")
    parser.add_argument("--like", metavar="SERIES", type=Path, help="write IN as a DICOM-SEG of this DICOM series")
    add_on(parser)
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one a CPU)")


def run(args: argparse.Namespace) -> int:
    """Convert; returns 1 where something that is a volume or a label was not written, or nothing was."""
    from medlight.cli.deidentify import processes

    workers = processes(
        args.workers, 2
    )  # a decoder that dies of broken pixels is to take no more than its worker along
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
    with bar("converting", len(found.stacks)) as progress:
        done = convert(found.stacks, args.out, mends, workers, progress)
    others = [Converted(stack) for stack in found.stacks if stack.kind == "other"]
    _show(args, [*done, *others], found.passed_over + len(found.others))
    write_json(args.json, [_entry(one) for one in [*done, *others]])
    return 0 if any(one.files for one in done) and not any(map(failed, done)) else 1


def failed(one: Converted) -> bool:
    """Whether something that ought to be written was not: a localizer or a screen capture is no volume."""
    return not one.files and one.stack.kind != "other" and one.stack.verdict.status != "not-a-volume"


def _show(args: argparse.Namespace, done: list[Converted], passed_over: int) -> None:
    """The table of ``data check`` with what was written; then the reasons for what was not."""
    from medlight.cli.table import printable, show
    from medlight.scans.dicom.survey import as_json, row

    if args.json != "-":
        columns = ("case", "modality", "files", "shape", "spacing", "orientation", "verdict", "detail", "written")
        details = ["; ".join([one.stack.verdict.told, *one.notes]).strip("; ") for one in done]
        rows = [row(as_json(one.stack), detail) for one, detail in zip(done, details, strict=True)]
        show(columns, [(*texts, " ".join(one.files) or "-") for texts, one in zip(rows, done, strict=True)])
    for one in done:
        if failed(one) and one.stack.verdict.status != "unreadable":  # the table says that of those
            print(f"not written: {printable(one.reason)}", file=sys.stderr)
        if one.names and args.json != "-" and sys.stdout.isatty():  # free text: shown, never kept
            print(f"{one.name}: {printable(', '.join(f'{number} {name}' for number, name in one.names))}")
    written, reused = sum(bool(one.files) for one in done), sum(one.reused for one in done)
    before = f" ({reused} of them before: same content, same mends)" if reused else ""
    over = f"; {passed_over} file{'s' if passed_over > 1 else ''} passed over" if passed_over else ""
    print(f"{written} written to {args.out}{before}{over}", file=sys.stderr)


def _entry(one: Converted) -> dict[str, Any]:
    """What a program may keep: numbers, codes and ids, no name of an input, of a region or of a person."""
    from medlight.scans.dicom.survey import as_json
    from medlight.scans.files import nameless

    reason = one.reason
    for place in {frame.place for frame in one.stack.frames} if reason else ():
        reason = nameless(nameless(reason, place.path, place.member), place.path.parent)
    mended = list(one.notes)
    return {**as_json(one.stack), "written": list(one.files), "reused": one.reused, "mended": mended, "reason": reason}


def _check(source: Path, out: Path) -> None:
    from medlight.scans.files import apart

    if not source.exists():
        raise UsageError(f"{source}: no such file or folder")
    apart(source, out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out}: can't be made ({error.strerror}); mend: give another OUT") from None


def _segmentation(args: argparse.Namespace) -> int:
    """Write one label map as a DICOM-SEG."""
    import numpy as np

    from medlight.cli.output import write_json
    from medlight.prepare import Label
    from medlight.scans import read
    from medlight.scans.dicom_seg import write_seg
    from medlight.scans.files import apart

    if args.out.suffix.lower() != ".dcm":
        raise UsageError(f"{args.out}: a DICOM-SEG is one file; call it .dcm")
    if args.on:
        raise UsageError("--on: there is nothing to mend in a label map")
    if args.out.exists():
        apart(args.like, args.out)
    mask = read(args.source)
    values = [int(value) for value in np.unique(mask.array) if value]
    write_seg(mask, args.like, args.out, [Label(value, f"label {value}") for value in values])
    if args.json != "-":
        print(f"{args.out}: {len(values)} segments")
    write_json(args.json, {"file": str(args.out), "values": values})
    return 0
