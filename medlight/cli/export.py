"""turn a run's best checkpoint into a checked bundle."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medlight.cli.output import ready, write_json
from medlight.cli.predict import check_threads
from medlight.errors import MedlightError, UsageError

if TYPE_CHECKING:
    from medlight.deploy.bundle import Bundle
    from medlight.prepare.case import Case

EPILOG = """\
example:
  medlight export RUN_ID
  medlight export RUN_ID hippocampus-bundle --to onnx,tensorrt --cases 20
  medlight export best.ckpt my-bundle --data experiments/hippocampus/fit.yaml

The bundle is compared with torch on whole validation cases, each path from the input file on. Where probabilities
differ by more than 1e-4 nothing is written and the exit code is 1; a TensorRT engine that differs is left out.
RUN may be a sweep: its best trial is taken."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``medlight export``."""
    parser.add_argument("model", metavar="RUN|CKPT", help="a run (id, prefix or name), a sweep, or a checkpoint file")
    parser.add_argument("out", metavar="OUT", nargs="?", type=Path, help="folder to write (default: ./NAME-bundle)")
    parser.add_argument("--to", default="onnx", metavar="LIST", help="onnx, or onnx,tensorrt (default: onnx)")
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
    from medlight.deploy.export import check_targets, engine_left_out, export
    from medlight.deploy.parity import ParityError
    from medlight.launch.fit import quiet

    quiet()
    ready(args.json)
    wanted = [target.strip() for target in args.to.split(",")]
    check_targets(wanted)
    check_threads(args.threads)
    if args.cases < 1:
        raise UsageError(f"--cases {args.cases}: at least 1, or --unchecked")
    subject = _find(args.model)
    targets, skipped = available(wanted)
    if skipped:
        _say(args, f"TensorRT is skipped: {skipped}")
    cases = None if args.unchecked else _cases(args, subject)
    out = args.out or Path(f"{subject.name}-bundle")
    from medlight.cli.progress import bar

    try:
        with bar("comparing with torch", len(cases or ())) as progress:
            options: dict[str, Any] = {"to": targets, "threads": args.threads, "progress": progress}
            bundle = export(subject.checkpoint, out, cases=cases, run_id=subject.run_id, **options)
    except MedlightError as error:
        if not isinstance(error, UsageError):
            _record(subject, {"medlight.export": "failed"}, error.figures if isinstance(error, ParityError) else {})
        raise
    _record(subject, tags(bundle, skipped), bundle.parity, bundle.root)
    if reason := engine_left_out(bundle):
        _say(args, f"the TensorRT engine is left out: {reason}")
    _show(args, bundle, cases)
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


def _cases(args: argparse.Namespace, subject: _Subject) -> list[Case]:
    """Return validation cases: those of the run's own data, or of the file that was named."""
    from medlight import config
    from medlight.callbacks.export import spread
    from medlight.launch.resolve import parse

    source = args.data
    if source is None and subject.run_id:
        from medlight.tracking import store

        source = store.artifact(subject.run_id, "config.yaml")
    if source is None:
        raise UsageError(
            f"{subject.checkpoint}: no validation cases are known for a bare checkpoint; "
            "mend: --data FIT.yaml, or --unchecked"
        )
    written = config.load_yaml(source)
    spec = written.get("data", written)
    if not config.is_spec(spec):
        raise UsageError(f"{source}: has no data section; write data: {{class_path: ..., init_args: {{...}}}}")
    any_task = {"class_path": "medlight.tasks.SegmentationTask"}  # the parser wants one; only the data is used
    data: Any = parse({"model": any_task, "data": spec}).build()[1]
    data.prepare_data()
    data.setup("validate")
    cases = [prepared.case for prepared in data.prepared["val"]]
    if not cases:
        raise UsageError(f"{source}: its split has no validation cases; mend: --data another file, or --unchecked")
    return spread(cases, args.cases)


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


def _show(args: argparse.Namespace, bundle: Bundle, cases: list[Case] | None) -> None:
    from rich.console import Console
    from rich.table import Table

    figures, model = bundle.parity, bundle.models[0]
    table = Table(title=str(bundle.root), title_justify="left", show_header=False)
    rows = [("models", ", ".join(f"{m.file} ({m.precision})" for m in bundle.models))]
    rows += [("free sizes", f"{', '.join(model.dynamic_axes)} (spatial sizes in multiples of {model.size_multiple})")]
    if cases:
        rows += [
            ("compared on", f"{figures['cases']} validation cases, {figures['runtime']}"),
            ("probabilities", f"largest difference {figures['max_abs_diff']:.2e}, mean {figures['mean_abs_diff']:.2e}"),
            ("tolerance", f"{figures['tolerance']:.0e}"),
            ("labels that agree", f"{100 * figures['label_agreement']:.4f} %"),
        ]
        if figures["dice_diff"] is not None:
            rows += [("largest Dice difference", f"{figures['dice_diff']:.2e}")]
    else:
        rows += [("compared on", "nothing (--unchecked)")]
    for row in rows:
        table.add_row(*row)
    Console(stderr=args.json == "-", soft_wrap=True).print(table)
    write_json(args.json, {"bundle": str(bundle.root), "run_id": bundle.run_id, "parity": figures})


def _say(args: argparse.Namespace, line: str) -> None:
    import sys

    print(line, file=sys.stderr if args.json == "-" else sys.stdout)
