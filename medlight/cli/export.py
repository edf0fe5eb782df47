"""turn a run's best checkpoint into a checked bundle."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medlight.cli.output import ready, write_json
from medlight.cli.predict import check_threads
from medlight.errors import MedlightError, UsageError

if TYPE_CHECKING:
    from medlight.deploy.bundle import Bundle
    from medlight.prepare import PreparedCase
    from medlight.prepare.case import Case

EPILOG = """\
example:
  medlight export RUN_ID
  medlight export RUN_ID hippocampus-bundle --to onnx,openvino --precision fp32,int8 --cases 20
  medlight export best.ckpt my-bundle --data experiments/hippocampus/fit.yaml

Every model is compared with torch on whole validation cases, each path from the input file on. Where one is outside
its tolerance nothing is written and the exit code is 1: fp32 1e-4 of any probability; fp16 and bf16 0.002, int8 0.005
of the mean Dice (classification: AUROC). INT8 is calibrated on training patches.
RUN may be a sweep: its best trial is taken."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``medlight export``."""
    parser.add_argument("model", metavar="RUN|CKPT", help="a run (id, prefix or name), a sweep, or a checkpoint file")
    parser.add_argument("out", metavar="OUT", nargs="?", type=Path, help="folder to write (default: ./NAME-bundle)")
    parser.add_argument("--to", default="onnx", metavar="LIST", help="of onnx,openvino,tensorrt,torch (default: onnx)")
    parser.add_argument("--precision", default="fp32", metavar="LIST", help="of fp32,fp16,bf16,int8 (default: fp32)")
    parser.add_argument("--cases", type=int, default=8, metavar="N", help="validation cases to compare on (default: 8)")
    parser.add_argument("--data", type=Path, metavar="FILE", help="fit YAML whose data section gives the cases")
    parser.add_argument("--unchecked", action="store_true", help="write a bundle that was compared with nothing")
    parser.add_argument("--threads", type=int, metavar="N", help="of onnxruntime (default: one a CPU)")
    parser.add_argument("--json", metavar="FILE", help="write the figures; - for standard output")


@dataclass(frozen=True)
class _Subject:
    """What is exported: a checkpoint, and the run it comes from if there is one."""

    checkpoint: Path
    name: str
    run_id: str | None = None


def run(args: argparse.Namespace) -> int:
    """Export, compare, record; prints the figures."""
    from medlight.callbacks.export import available, tags
    from medlight.cli.progress import bar
    from medlight.deploy.export import check_targets, export
    from medlight.deploy.parity import ParityError
    from medlight.launch.fit import quiet

    quiet()
    ready(args.json)
    wanted, precision = ([name.strip() for name in text.split(",")] for text in (args.to, args.precision))
    check_targets(wanted, precision)
    check_threads(args.threads)
    if args.cases < 1:
        raise UsageError(f"--cases {args.cases}: at least 1, or --unchecked")
    subject = _find(args.model)
    targets, skipped = available(wanted)
    if skipped:
        _say(args, f"TensorRT is skipped: {skipped}")
    cases, training = _cases(args, subject, "int8" in precision)
    out = args.out or Path(f"{subject.name}-bundle")
    options: dict[str, Any] = {"to": targets, "precision": precision, "training": training, "threads": args.threads}
    try:
        with bar("comparing with torch", len(cases or ())) as progress:
            bundle = export(subject.checkpoint, out, cases=cases, run_id=subject.run_id, progress=progress, **options)
    except MedlightError as error:
        if not isinstance(error, UsageError):
            _record(subject, {"medlight.export": "failed"}, error.figures if isinstance(error, ParityError) else {})
        raise
    _record(subject, tags(bundle, skipped), bundle.parity, bundle.root)
    _show(args, bundle)
    return 0


def _find(text: str) -> _Subject:
    """Return what a RUN or CKPT argument means; of a sweep its best trial."""
    if text.endswith(".ckpt"):
        file = Path(text)
        if not file.is_file():
            raise UsageError(f"{file}: no such checkpoint")
        return _Subject(file, file.stem)
    from medlight.tracking import store

    found = store.find_run(text)
    name = str(found.info.run_name or found.info.run_id[:8])
    if found.data.tags.get("medlight.kind") == "sweep":
        best = found.data.tags.get("medlight.best_run", "").split(",")[0]
        if not best:
            raise UsageError(f"sweep {text} has no best trial yet; mend: let a trial finish, or name a run")
        found = store.find_run(best)
    run_id = str(found.info.run_id)
    return _Subject(store.artifact(run_id, "checkpoints/best.ckpt"), name, run_id)


def _cases(
    args: argparse.Namespace, subject: _Subject, calibrated: bool
) -> tuple[list[Case] | None, Sequence[PreparedCase]]:
    """Return validation cases to compare on and training cases to calibrate on, of the run or of the file named."""
    from medlight.callbacks.export import spread

    source = args.data
    if source is None and subject.run_id:
        from medlight.tracking import store

        source = store.artifact(subject.run_id, "config.yaml")
    if args.unchecked and not calibrated:
        return None, ()
    if source is None:
        raise UsageError(
            f"{subject.checkpoint}: no validation cases are known for a bare checkpoint; "
            "mend: --data FIT.yaml, or --unchecked"
        )
    data = _data(source, "fit" if calibrated else "validate")
    training = data.prepared["train"] if calibrated else ()
    cases = [prepared.case for prepared in data.prepared["val"]]
    if args.unchecked:
        return None, training
    if not cases:
        raise UsageError(f"{source}: its split has no validation cases; mend: --data another file, or --unchecked")
    return spread(cases, args.cases), training


def _data(source: Path, stage: str) -> Any:
    """Build the data module of a fit YAML, prepared."""
    from medlight import config
    from medlight.launch.resolve import parse

    written = config.load_yaml(source)
    spec = written.get("data", written)
    if not config.is_spec(spec):
        raise UsageError(f"{source}: has no data section; write data: {{class_path: ..., init_args: {{...}}}}")
    any_task = {"class_path": "medlight.tasks.SegmentationTask"}  # the parser wants one; only the data is used
    data: Any = parse({"model": any_task, "data": spec}).build()[1]
    data.prepare_data()
    data.setup(stage)
    return data


def _record(subject: _Subject, tags: dict[str, str], figures: dict[str, Any], bundle: Path | None = None) -> None:
    """Write an export to its run."""
    if subject.run_id is None:
        return
    from medlight.callbacks.export import metrics
    from medlight.tracking import store

    client = store.client()
    with store.reached():
        for metric, figure in metrics(figures).items():
            points = client.get_metric_history(subject.run_id, metric)  # a callback may have logged one, at its step
            client.log_metric(subject.run_id, metric, figure, step=max((point.step for point in points), default=0))
        if bundle is not None:
            client.log_artifacts(subject.run_id, str(bundle), "bundle")
        for name, value in tags.items():
            client.set_tag(subject.run_id, name, value)


def _show(args: argparse.Namespace, bundle: Bundle) -> None:
    from rich.console import Console
    from rich.table import Table

    figures, model = bundle.parity, bundle.models[0]
    of_models = {model.name: figures, **figures.get("models", {})}
    columns = ["model", "file", "MB", "largest difference", "mean", "judged by", "difference", "tolerance"]
    title = (
        f"{bundle.root}: compared with torch on {figures['cases']} validation cases"
        if "cases" in figures
        else (f"{bundle.root}: compared with nothing (--unchecked)")
    )
    table = Table(*columns, title=title, title_justify="left")
    for entry in bundle.models:
        size = f"{(bundle.root / entry.file).stat().st_size / 1e6:.1f}"
        table.add_row(entry.name, entry.file, size, *_figures(of_models.get(entry.name, {})))
    console = Console(stderr=args.json == "-", soft_wrap=True)
    console.print(table)
    sizes = f" (spatial sizes in multiples of {model.size_multiple})" if model.size_multiple > 1 else ""
    console.print(f"free sizes: {', '.join(model.dynamic_axes)}{sizes}")
    write_json(args.json, {"bundle": str(bundle.root), "run_id": bundle.run_id, "parity": figures})


def _figures(figures: dict[str, Any]) -> list[str]:
    if "max_abs_diff" not in figures:
        return ["-"] * 5
    spread = [f"{figures['max_abs_diff']:.1e}", f"{figures['mean_abs_diff']:.1e}"]
    if figures["precision"] == "fp32":
        return [*spread, "probabilities", spread[0], f"{figures['tolerance']:g}"]
    return [*spread, figures["score"], f"{figures['score_diff']:.1e}", f"{figures['tolerance']:g}"]


def _say(args: argparse.Namespace, line: str) -> None:
    import sys

    print(line, file=sys.stderr if args.json == "-" else sys.stdout)
