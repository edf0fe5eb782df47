"""run a bundle on scans."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medlight.cli.bundles import HELP, bundle_of, check_runtime, check_threads
from medlight.cli.machine import say_clash
from medlight.cli.mends import add_on, mends
from medlight.cli.output import ready, write_json
from medlight.errors import UsageError

if TYPE_CHECKING:
    from medlight.deploy.bundle import Bundle
    from medlight.deploy.runtime import Predictor
    from medlight.deploy.runtime.batch import Batch
    from medlight.deploy.runtime.studies import Asked

EPILOG = """\
example:
  medlight predict hippocampus-bundle scan.nii.gz out
  medlight predict hippocampus-bundle scans/images out --truth scans/labels
  medlight predict RUN_ID scans.csv out --probabilities
  medlight predict RUN_ID dicom/studies out --on gap=interpolate
  medlight predict RUN_ID dicom/series out --format nifti
  medlight predict RUN_ID drop-folder out --watch

For each scan, OUT gets NAME.nii.gz (a label map in the scan's own geometry), or for DICOM NAME.dcm (a DICOM-SEG), and
NAME.png (prediction filled, truth outlined). A classification gives NAME.png with the likeliest classes below the scan,
and of DICOM NAME_sr.json. Where OUT is a folder, summary.json and summary.csv tell of all: millilitres, probabilities,
warnings. NAME is the file's, or the manifest's id; DICOM goes by its content (case-...), as in a fit. What was
predicted before from the same files with the same bundle isn't done again."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``medlight predict``."""
    parser.add_argument("model", metavar="BUNDLE|RUN", help=HELP)
    parser.add_argument(
        "source",
        metavar="IN",
        type=Path,
        help="a scan (a file, a DICOM series), a folder of scans, a tree of studies, or a manifest",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write, or one .nii.gz or .dcm for one scan")
    parser.add_argument(
        "--format", choices=("nifti", "dicom-seg"), help="of label maps (default: as the scans: DICOM-SEG for DICOM)"
    )
    parser.add_argument("--truth", type=Path, metavar="FOLDER", help="label maps of the same names: Dice is measured")
    parser.add_argument("--probabilities", action="store_true", help="write NAME_probabilities.nii.gz too")
    parser.add_argument("--watch", action="store_true", help="IN is a drop folder: predict what comes to rest in it")
    parser.add_argument(
        "--force",
        action="store_true",
        help="predict what does not fit the bundle, mend gaps and tilt, and keep a warning with the result",
    )
    add_on(parser)
    parser.add_argument(
        "--runtime", metavar="NAME", help="run this model of the bundle, as openvino-int8 (default: the fastest here)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="of the CPU runtime (default: one a CPU)")
    parser.add_argument("--json", metavar="FILE", help="write the results; - for standard output")


def run(args: argparse.Namespace) -> int:
    """Predict every scan; a bad one is named and does not stop the others. Returns 1 if there was one."""
    from medlight.deploy.runtime.batch import Batch
    from medlight.deploy.runtime.studies import Asked, items_of, passed_over
    from medlight.scans.files import apart

    say = sys.stderr if args.json == "-" else sys.stdout
    check_threads(args.threads)
    ready(args.json)
    say_clash()
    bundle = bundle_of(args.model)
    check_runtime(bundle, args.runtime)  # before a folder is made
    apart(bundle.root, args.out)
    clip = bundle.data["preparation"].get("frames") == "clip"  # a film's label maps are several
    asked = Asked(args.out, args.truth, args.format or ("nifti" if clip else None))
    if bundle.task == "classification":
        _check_classification(args, asked)
    if args.watch:
        return _watch(args, asked, bundle, say)
    items = items_of(args.source, asked)
    missed = passed_over(args.source, items)
    if missed:
        print(f"passed over: {len(missed)} files, as {missed[0]}; mend: name them, or a manifest", file=sys.stderr)
    folder = _folder(args.out, items[0].output)
    batch = Batch(_predictor(args, bundle, say), folder, args.probabilities, args.force)
    from medlight.cli.progress import bar

    with bar("predicting", len(items)) as progress:
        batch.run(items, progress)
    if not asked.one_file:
        batch.summarise()
    _show(args, batch, say)
    write_json(args.json, batch.content)
    return 1 if batch.failed or any("not_compared" in result for result in batch.results) else 0


def _check_classification(args: argparse.Namespace, asked: Asked) -> None:
    """Refuse what only label maps have."""
    if asked.one_file:
        raise UsageError(f"{args.out}: a classification writes no label map; mend: name a folder")
    for name in ("probabilities", "truth", "format"):
        if getattr(args, name):
            raise UsageError(f"--{name}: is for label maps, and this bundle is for classification; leave it out")


def _predictor(args: argparse.Namespace, bundle: Bundle, say: Any) -> Predictor:
    """Load the network, and say what runs it."""
    from medlight.deploy.runtime import Predictor

    predictor = Predictor(bundle, args.threads, model=args.runtime)
    own = predictor.preparation
    predictor.preparation = replace(own, on={**own.on, **mends(args.on)})
    print(predictor.runtime, file=say)
    if not bundle.checked:
        print(f"unchecked: {bundle.root} tells of no comparison with the trained network", file=say)
    return predictor


def _watch(args: argparse.Namespace, asked: Asked, bundle: Bundle, say: Any) -> int:
    """Predict what comes until Ctrl-C or SIGTERM; what failed was said when it did."""
    import signal

    from medlight.deploy.runtime.batch import Batch
    from medlight.deploy.runtime.fit_for import UNCHECKED, checks_modality
    from medlight.deploy.runtime.watch import Drop

    if not args.source.is_dir():
        raise UsageError(f"{args.source}: no such folder to watch; mend: make it")
    if asked.one_file or asked.truth:
        raise UsageError("--watch: takes a folder for OUT, and no --truth")
    drop = Drop(args.source, asked)
    folder = _folder(args.out, args.out / "summary.json")
    batch = Batch(_predictor(args, bundle, say), folder, args.probabilities, args.force, keeps=True)
    if not checks_modality(bundle.data):
        print(UNCHECKED, file=sys.stderr)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        print(f"watching {args.source}; Ctrl-C ends it", file=say, flush=True)
        for item in drop.items():
            result = batch.add(item)
            batch.summarise()
            if result is None:
                print(f"not predicted: {batch.failed[-1][1]}", file=sys.stderr, flush=True)
            elif not result["reused"]:
                said = "".join(f"; {warning}" for warning in result["warnings"])
                print(f"{item.name}: predicted{said}", file=say, flush=True)
    except KeyboardInterrupt:
        new = sum(not result["reused"] for result in batch.results)
        print(f"ended: {new} predicted, {len(batch.failed)} not", file=say, flush=True)
    finally:
        signal.signal(signal.SIGTERM, before)
    write_json(args.json, batch.content)
    return 0


def _folder(out: Path, output: Path) -> Path:
    """Make the folder of the outputs and try it; UsageError where nothing can be written there."""
    import tempfile

    if output.is_dir():
        raise UsageError(f"{output}: is a folder, and the label map would go there; mend: give another OUT")
    if out != output and out.is_file():
        raise UsageError(f"{out}: is a file; mend: name a folder to write to, or one .nii.gz for one scan")
    folder = output.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise UsageError(f"{out}: can't be written to ({error.strerror}); mend: give another OUT") from None


def _show(args: argparse.Namespace, batch: Batch, say: Any) -> None:
    from medlight.deploy.runtime.checked import named
    from medlight.deploy.runtime.fit_for import UNCHECKED, checks_modality

    results, reused = batch.results, sum(result["reused"] for result in batch.results)
    _table([result for result in results if "dice" in result or "probabilities" in result], say)
    unscored = sum(not ("dice" in result or "probabilities" in result) for result in results)
    if args.truth and unscored:
        print(f"{unscored} not compared with a truth in {args.truth}", file=say)
    done = f"{len(results)} predicted" + (f" ({reused} of them before: same files, same bundle)" if reused else "")
    print(f"{done}, in {args.out}", file=say)
    for item in batch.items:
        if item.name.startswith("case-"):
            print(f"{item.name}: {named(item.source)}", file=say)
    for result in results:
        for note in result.get("mended", ()):
            print(f"mended {result['name']}: {note}", file=say)
        for note in (text for text in result["warnings"] if text not in result.get("mended", ())):
            print(f"warning {result['name']}: {note}", file=sys.stderr)
    if not checks_modality(batch.predictor.bundle.data):
        print(UNCHECKED, file=sys.stderr)
    elif batch.untold:
        print(f"modality not checked: {len(batch.untold)} of {len(results)} scans tell none", file=sys.stderr)
    for result in results:
        if "not_compared" in result:
            print(f"{result['name']} is not compared with its truth: {result['not_compared']}", file=sys.stderr)
    for _, error in batch.failed:
        print(f"not predicted: {error}", file=sys.stderr)


def _table(scored: list[dict[str, Any]], say: Any) -> None:
    """Show Dice, or the probabilities of classes."""
    from rich.console import Console
    from rich.table import Table

    if not scored:
        return
    console = Console(file=say)
    if not console.is_terminal:
        console = Console(file=say, width=160)
    kind = "dice" if "dice" in scored[0] else "probabilities"
    names = list(scored[0][kind])
    columns = ["scan", *names, *(["mean"] if kind == "dice" and len(names) > 1 else [])]
    table = Table(*columns, title="Dice" if kind == "dice" else "probability", title_justify="left")
    rows = {result["name"]: result[kind] for result in scored}
    if kind == "dice" and len(rows) > 1:
        rows["mean"] = {name: _mean([r["dice"][name] for r in scored]) for name in names}
    for name, row in rows.items():
        values = [row[n] for n in names]
        table.add_row(name, *map(_figure, values + ([_mean(values)] if "mean" in columns else [])))
    console.print(table)


def _mean(values: list[float | None]) -> float | None:
    kept = [value for value in values if value is not None]
    return sum(kept) / len(kept) if kept else None


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
