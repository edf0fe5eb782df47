"""run a bundle on scans."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Container
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medlight.cli.mends import add_on, mends
from medlight.cli.output import ready, write_json
from medlight.errors import MedlightError, UsageError

if TYPE_CHECKING:
    from medlight.deploy.bundle import Bundle
    from medlight.deploy.runtime.files import Item
    from medlight.prepare.case import BadCase

EPILOG = """\
example:
  medlight predict hippocampus-bundle scan.nii.gz out
  medlight predict hippocampus-bundle scans/images out --truth scans/labels
  medlight predict RUN_ID scans.csv out --probabilities
  medlight predict RUN_ID dicom/series out --on gap=interpolate

For each scan, OUT gets NAME.nii.gz (a label map in the scan's own geometry) and NAME.png (prediction filled, truth
outlined). NAME is the file's, or the manifest's id; DICOM goes by its content (case-...), as in a fit. What was
predicted before from the same files with the same bundle is not done again."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``medlight predict``."""
    parser.add_argument("model", metavar="BUNDLE|RUN", help="a bundle folder, or a run (or sweep) that was exported")
    parser.add_argument(
        "source", metavar="IN", type=Path, help="a scan (a file, a DICOM series), a folder of scans, or a manifest"
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write, or one .nii.gz for one scan")
    parser.add_argument("--truth", type=Path, metavar="FOLDER", help="label maps of the same names: Dice is measured")
    parser.add_argument("--probabilities", action="store_true", help="write NAME_probabilities.nii.gz too")
    add_on(parser)
    parser.add_argument("--threads", type=int, metavar="N", help="of the CPU runtime (default: one a CPU)")
    parser.add_argument("--json", metavar="FILE", help="write the results; - for standard output")


def run(args: argparse.Namespace) -> int:
    """Predict every scan; a bad one is named and does not stop the others. Returns 1 if there was one."""
    from medlight.cli.progress import bar
    from medlight.deploy.runtime import Predictor
    from medlight.deploy.runtime.files import Journal, predict_item

    say = sys.stderr if args.json == "-" else sys.stdout
    check_threads(args.threads)
    ready(args.json)
    bundle = _bundle(args.model)
    items = _items(args)
    folder = _folder(args.out, items[0].output)
    predictor = Predictor(bundle, args.threads)
    own = predictor.preparation
    predictor.preparation = replace(own, on={**own.on, **mends(args.on)})
    print(predictor.runtime, file=say)
    if not bundle.checked:
        print(f"unchecked: {bundle.root} tells of no comparison with the trained network", file=say)
    journal = Journal(folder)
    results: list[dict[str, Any]] = []
    failed: list[tuple[Item, str]] = []
    with bar("predicting", len(items)) as progress:
        for number, item in enumerate(items):

            def within(done: int, total: int, start: int = number) -> None:
                progress(start + done / total, len(items))

            try:
                options: dict[str, Any] = {"probabilities": args.probabilities, "progress": within}
                results.append(predict_item(predictor, item, journal, **options))
            except (MedlightError, OSError) as error:
                failed.append((item, " ".join(str(error).split())))
            progress(number + 1, len(items))
    _show(args, items, results, failed, say)
    kept = [{"name": item.name, "error": _without_paths(error, item)} for item, error in failed]
    content = {"bundle": str(bundle.root), "runtime": predictor.runtime, "cases": results, "failed": kept}
    write_json(args.json, content)
    return 1 if failed or any("not_compared" in result for result in results) else 0


def _without_paths(error: str, item: Item) -> str:
    """What is kept of a failure: a file's name may be a patient's, and is only shown."""
    from medlight.scans.files import nameless

    for path in item.images.values():
        error = nameless(error, path)
    return error


def check_threads(count: int | None) -> None:
    """Raise UsageError for a number of threads that can't be."""
    if count is not None and count < 1:
        raise UsageError(f"--threads {count}: at least 1; leave it out for one a CPU")


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


def _bundle(text: str) -> Bundle:
    """Load a bundle folder, or the bundle of a run (of a sweep: of its best trial)."""
    from medlight.deploy.bundle import Bundle

    if Path(text).exists():
        return Bundle.load(Path(text))
    import logging

    from medlight.tracking import store

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        found = store.find_run(text)
    except UsageError as error:
        raise UsageError(f"{text}: no such bundle folder, and {error}") from None
    if found.data.tags.get("medlight.kind") == "sweep":
        found = store.find_run(found.data.tags.get("medlight.best_run", "").split(",")[0] or found.info.run_id)
    run_id = str(found.info.run_id)
    try:
        return Bundle.load(store.artifact(run_id, "bundle"))
    except MedlightError as error:
        raise UsageError(f"run {text} has no bundle ({error}); mend: medlight export {run_id}") from None


def _items(args: argparse.Namespace) -> list[Item]:
    """List what is to be predicted; UsageError where there is nothing, names clash or an input would be overwritten."""
    from medlight.deploy.runtime.files import Item
    from medlight.prepare.folders import KINDS
    from medlight.scans import SUFFIXES
    from medlight.scans.files import apart
    from medlight.scans.nifti import NIFTI_SUFFIXES

    found: dict[str, Item] = {}
    inputs = _inputs(args.source)
    name_of_out = args.out.name.lower()
    one_file = name_of_out.endswith(NIFTI_SUFFIXES)
    if not one_file and name_of_out.endswith(SUFFIXES) and not args.out.is_dir():
        raise UsageError(f"{args.out}: a label map is written as NIfTI; name a .nii.gz, or a folder")
    if len(inputs) > 1 and one_file:
        raise UsageError(f"{args.out}: {len(inputs)} scans need a folder to be written to")
    if args.truth and args.truth.is_file() and len(inputs) > 1:
        raise UsageError(f"--truth {args.truth}: {len(inputs)} scans need a folder of label maps")
    for called, images, own_truth in inputs:
        name = _nameless(called, images, args.source, found)
        output = args.out if one_file else args.out / f"{name}.nii.gz"
        item = Item(name, images, output, _truth(args.truth, called) or own_truth)
        if name in found:
            both = f"{next(iter(found[name].images.values()))} and {next(iter(images.values()))}"
            raise UsageError(f"{both} have the same name, so would their outputs; mend: rename one")
        found[name] = item
    if not found:
        raise UsageError(f"{args.source}: {KINDS}")
    read = {file.resolve() for item in found.values() for file in [*item.images.values(), item.truth] if file}
    for item in found.values():
        if item.output.resolve() in read:
            raise UsageError(f"{item.output} would be overwritten; mend: give another OUT")
        for series in filter(Path.is_dir, item.images.values()):
            apart(series, item.output)
    return list(found.values())


def _nameless(called: str, images: dict[str, Path], source: Path, others: Container[str]) -> str:
    """What a scan's outputs are called: as its file is, or as the manifest says; DICOM by its content, as in a fit.

    The name of a DICOM folder is a patient's as a rule: it is shown in the terminal and stored nowhere.
    """
    from medlight.prepare.contents import sha256
    from medlight.prepare.digests import content_digest
    from medlight.scans.read import format_of

    (contrast, image), *more = images.items()
    if more or source.suffix.lower() in (".csv", ".json") or format_of(image) != "dicom":
        return called
    name = f"case-{sha256([[contrast, content_digest(image)]])[:10]}"
    copies = (f"{name}+{number}" for number in itertools.count(1))
    return name if name not in others else next(copy for copy in copies if copy not in others)


def _inputs(source: Path) -> list[tuple[str, dict[str, Path], Path | None]]:
    """Return name, images and truth (a manifest's own) of each scan."""
    from medlight.prepare.folders import are_slices, loose, name_of, scans_in

    if source.is_dir():
        if are_slices(loose(sorted(source.iterdir()))):
            return [(source.resolve().name, {"image": source}, None)]
        unclear: list[BadCase] = []
        scans = scans_in(source, unclear)
        for bad in unclear:
            raise UsageError(bad.reason)
        return [(name, {"image": scan}, None) for name, scan in scans.items()]
    if source.suffix.lower() in (".csv", ".json"):
        from medlight.prepare import Manifest

        listed = Manifest(str(source), unlabelled=True).cases()
        for bad in listed.bad:
            raise MedlightError(bad.reason)
        cases = [(c.id, {k: v for k, v in c.images.items() if isinstance(v, Path)}, c.label) for c in listed.cases]
        return [(name, images, label if isinstance(label, Path) else None) for name, images, label in cases]
    if not source.is_file():
        raise UsageError(f"{source}: no such file or folder")
    return [(name_of(source), {"image": source}, None)]


def _truth(folder: Path | None, name: str) -> Path | None:
    from medlight.scans import SUFFIXES, is_scan

    if folder is None:
        return None
    if folder.is_file():
        return folder
    if not folder.is_dir():
        raise UsageError(f"--truth {folder}: no such folder")
    files = [file for suffix in SUFFIXES if (file := folder / f"{name}{suffix}").is_file()]
    files += [folder / name] if is_scan(folder / name) else []
    return files[0] if files else None


def _show(
    args: argparse.Namespace,
    items: list[Item],
    results: list[dict[str, Any]],
    failed: list[tuple[Item, str]],
    say: Any,
) -> None:
    from rich.console import Console
    from rich.table import Table

    reused = sum(result["reused"] for result in results)
    console = Console(file=say)
    if not console.is_terminal:
        console = Console(file=say, width=160)
    scored = [result for result in results if "dice" in result or "probabilities" in result]
    if scored:
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
    unscored = len(results) - len(scored)
    if args.truth and unscored:
        print(f"{unscored} without a truth in {args.truth}", file=say)
    done = f"{len(results)} predicted" + (f" ({reused} of them before: same files, same bundle)" if reused else "")
    print(f"{done}, in {args.out}", file=say)
    for item in items:
        source = next(iter(item.images.values()))
        if item.name.startswith("case-"):
            print(f"{item.name}: {source}", file=say)
    for result in results:
        for note in result.get("mended", ()):
            print(f"mended {result['name']}: {note}", file=say)
    for result in results:
        if "not_compared" in result:
            print(f"{result['name']} is not compared with its truth: {result['not_compared']}", file=sys.stderr)
    for _, error in failed:
        print(f"not predicted: {error}", file=sys.stderr)


def _mean(values: list[float | None]) -> float | None:
    kept = [value for value in values if value is not None]
    return sum(kept) / len(kept) if kept else None


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
