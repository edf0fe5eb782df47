"""check, convert, de-identify and prepare scans, download public data sets."""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path
from typing import Any

from medlight.cli import check, convert, deidentify, info
from medlight.cli.mends import add_on, mends
from medlight.cli.output import ready, write_json
from medlight.config import parse_overrides
from medlight.errors import UsageError

TAKES_OVERRIDES = True
EPILOG = """\
example:
  medlight data check scans
  medlight data convert scans nifti
  medlight data prepare -c experiments/hippocampus/fit.yaml
  medlight data download Task04_Hippocampus

`medlight data ACTION --help` shows an action's arguments."""
_PREPARE = """\
example:
  medlight data prepare -c experiments/hippocampus/fit.yaml --workers 2 --on-bad-case skip
  medlight data prepare -c fit.yaml --data.preparation.spacing=[1,1,1]

Each case is read, checked, oriented and resampled once, into the store that the file names (mlruns/store).
What is there already is not done again; a run that was stopped goes on where it was."""
_DOWNLOAD = """\
example:
  medlight data download Task04_Hippocampus
  medlight data download breastmnist scans --from ~/Downloads/breastmnist.npz

names: Task01_BrainTumour Task02_Heart Task03_Liver Task04_Hippocampus Task05_Prostate Task06_Lung Task07_Pancreas
  Task08_HepaticVessel Task09_Spleen Task10_Colon (Medical Segmentation Decathlon, http://medicaldecathlon.com);
  pathmnist chestmnist dermamnist octmnist pneumoniamnist retinamnist breastmnist bloodmnist tissuemnist
  organamnist organcmnist organsmnist, and organ-, nodule-, adrenal-, fracture-, vessel-, synapsemnist3d
  (MedMNIST, https://medmnist.com, 28 pixels)"""

_ON_SCANS: dict[str, Any] = {"check": check, "convert": convert, "info": info, "deidentify": deidentify}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``medlight data``."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    options: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    every = []
    for name, module in _ON_SCANS.items():
        every.append(
            actions.add_parser(name, help=module.HELP, description=module.HELP, epilog=module.EPILOG, **options)
        )
        module.add_arguments(every[-1])
    text = "build the prepared store of a study"
    prepare = actions.add_parser("prepare", help=text, description=text, epilog=_PREPARE, **options)
    prepare.add_argument(
        "-c", "--config", action="append", required=True, metavar="FILE", help="fit YAML; later over earlier"
    )
    prepare.add_argument("--on-bad-case", choices=("error", "skip"), help="what to do with a case that can't be used")
    add_on(prepare)
    prepare.add_argument("--workers", type=int, metavar="N", help="processes; 0: none but this one")
    text = "fetch a public data set, its digest checked"
    download = actions.add_parser("download", help=text, description=text, epilog=_DOWNLOAD, **options)
    download.add_argument("name", metavar="NAME", help="a data set, see below")
    download.add_argument(
        "out", metavar="OUT", nargs="?", type=Path, help="folder (default: MEDLIGHT_DATA, else ./data)"
    )
    download.add_argument("--from", dest="source", metavar="FILE|FOLDER|URL", help="in place of the official source")
    for action in (*every, prepare, download):
        action.add_argument("--json", metavar="FILE", help="write the result as JSON (-: standard output)")
        action.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Run the chosen action."""
    if args.action == "prepare":
        overrides = parse_overrides(args.overrides)
        ready(args.json)
        return _prepare(args, overrides)
    if args.overrides:
        raise UsageError(_too_much(args.overrides[0], args))
    ready(args.json)
    return int(_ON_SCANS[args.action].run(args)) if args.action in _ON_SCANS else _download(args)


def _too_much(word: str, args: argparse.Namespace) -> str:
    """What is wrong with a word that an action without overrides has no place for."""
    usage = f"see medlight data {args.action} --help"
    if word.startswith("-"):
        return f"{word.partition('=')[0]}: not an option of data {args.action}; {usage}"
    fault, equals, _ = word.partition("=")
    if equals and fault in ("gap", "uneven", "tilt", "duplicate") and "on" in args:
        return f"{word}: each mend takes an --on of its own; write --on {word}"
    return f"{word}: one word too many for data {args.action}; {usage}"


def _prepare(args: argparse.Namespace, overrides: list[tuple[str, Any]]) -> int:
    from medlight.launch.fit import quiet
    from medlight.launch.resolve import read

    quiet()
    if args.on_bad_case:
        overrides = [*overrides, ("data.on_bad_case", args.on_bad_case)]
    overrides = [*overrides, *((f"data.preparation.on.{key}", value) for key, value in mends(args.on).items())]
    if args.workers is not None:
        overrides = [*overrides, ("data.workers", args.workers)]
    module = _data_module(read(args.config, overrides))
    module.prepare_data()
    module.setup("fit")
    found = summary(module)
    if args.json != "-":
        _print(found)
    _name(module)
    write_json(args.json, found)
    return 0


def _name(module: Any) -> None:
    """Say which file each case is that goes by its content: on a terminal, since file names may not be kept."""
    from medlight.prepare.checks import named

    cases = [case.case for part in module.prepared.values() for case in part] if sys.stdout.isatty() else []
    for case in cases:
        if module.recorded[case.id].startswith("case-"):
            print(f"{module.recorded[case.id]}  {named(next(iter(case.images.values())))}")


def _data_module(config: dict[str, Any]) -> Any:
    """Build the data module of a configuration as a fit would; the other sections are not looked at."""
    import lightning as L
    from jsonargparse import ArgumentParser

    from medlight.config import check_spec, is_spec
    from medlight.launch.blame import explain

    if not is_spec(config.get("data")):
        raise UsageError("data: missing; write data: {class_path: medlight.data.ScanDataModule, init_args: {...}}")
    check_spec(config["data"], "data")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(L.LightningDataModule, "data")
    try:
        parsed = parser.parse_object(copy.deepcopy({"data": config["data"]}))
        return parser.instantiate_classes(parsed).data
    except UsageError:
        raise
    except Exception as error:
        said = explain({"data": config["data"]}, {"data": L.LightningDataModule}, error)
        raise UsageError(said) from None


def summary(module: Any) -> dict[str, Any]:
    """What a prepared data module holds, as plain values; ``cases_with`` 0: how many label maps are all background."""
    from medlight.prepare import cases_with

    prepared = {name: list(cases) for name, cases in module.prepared.items()}
    every = [case for cases in prepared.values() for case in cases]
    return {
        "store": str(Path(module.store_dir).absolute()),
        "computed": module.computed,
        "reused": module.reused,
        "cases": {name: len(cases) for name, cases in prepared.items()},
        "labels": {str(label.value): label.name for label in module.labels},
        "labelled": sum(case.has_label for case in every),
        "cases_with": {str(value): count for value, count in cases_with(every).items()},
        "classes": list(module.classes),
        "channels": list(every[0].channels) if every else [],
        "shape": _range([case.shape for case in every]),
        "spacing": _range([[round(s, 4) for s in case.spacing] for case in every]),
        "mended": module.mended,
        "bad": [{"id": bad.id, "reason": bad.reason} for bad in module.bad],
    }


def _range(rows: list[Any]) -> list[list[float]]:
    """Smallest and largest along each of three axes."""
    return [[min(axis), max(axis)] for axis in zip(*rows, strict=True)]


def _print(found: dict[str, Any]) -> None:
    uses = [f"{count} {name}" for name, count in found["cases"].items() if count]
    rows = [
        ("cases", ", ".join(uses)),
        ("images", ", ".join(found["channels"])),
        ("labels", ", ".join(_label(found, value) for value in found["labels"])),
        ("classes", ", ".join(found["classes"])),
        ("voxels", " x ".join(map(_span, found["shape"]))),
        ("spacing", " x ".join(map(_span, found["spacing"])) + " mm"),
        ("store", f"{found['store']} ({found['computed']} prepared now, {found['reused']} reused)"),
        *(("mended", f"{name}: {note}") for name, notes in found["mended"].items() for note in notes),
        *(("left out", bad["reason"]) for bad in found["bad"]),
    ]
    for name, text in rows:
        if text:
            print(f"{name:<9} {text}")


def _label(found: dict[str, Any], value: str) -> str:
    """A label by value and name, with a remark where few cases hold it, or where a case holds background alone."""
    count, total = found["cases_with"].get(value, 0), found["labelled"]
    text = f"{value} {found['labels'][value]}"
    if value == "0":
        return f"{text} (alone in {count} of {total} cases)" if count else text
    return f"{text} (in {count} of {total} cases)" if 2 * count < total else text


def _span(ends: list[float]) -> str:
    low, high = ends
    return f"{low:g}" if low == high else f"{low:g}-{high:g}"


def _download(args: argparse.Namespace) -> int:
    from medlight.cli.download import default_folder, fetch, find

    dataset = find(args.name)
    place = fetch(dataset, args.out or default_folder(), args.source, progress=sys.stderr.isatty())
    if args.json != "-":
        print(place)
    write_json(args.json, {"name": dataset.name, "path": str(place), "md5": dataset.md5})
    return 0
