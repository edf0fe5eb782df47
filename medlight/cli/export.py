"""turn a run's best checkpoint into a checked bundle."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medlight.cli.bundles import check_threads
from medlight.cli.machine import say_clash
from medlight.cli.output import ready, write_json
from medlight.errors import InterruptedFitError, MedlightError, UsageError

if TYPE_CHECKING:
    from medlight.deploy.bundle import Bundle
    from medlight.deploy.tensorrt import Options

EPILOG = """\
example:
  medlight export RUN_ID
  medlight export RUN_ID hippocampus-bundle --to onnx,openvino --precision fp32,int8 --cases 20
  medlight export best.ckpt my-bundle --data experiments/hippocampus/fit.yaml

Every model is compared with torch on whole validation cases, each path from the input file on. Where one is outside
its tolerance nothing is written and the exit code is 1: fp32 1e-4 of any probability; fp16 and bf16 0.002, int8 0.005
of the mean Dice (classification: AUROC). INT8 is calibrated on training patches, which also show what fp16 can't hold.
--prune takes channels out of the network and fits it once more by the run's own recipe, as a run of its own; the
tables, --json and pruning.json of that run show each step.
TensorRT's engines are for this GPU and release, and are built again elsewhere; --version-compatible and
--hardware-compatible make slower ones that later releases and other GPUs run too.
RUN may be a sweep: its best trial is taken."""

Row = dict[str, Any]  # what a model costs and says, see `_rows`
Steps = dict[str, list[Row]]  # towards a pruned network, in their order
_APART = ("largest\ndifference", "mean\ndifference", "worst case", "judged by", "tolerance")
_TITLES = {"before_pruning": "before pruning: ", "before_fine_tuning": "before fine-tuning: "}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``medlight export``."""
    parser.add_argument("model", metavar="RUN|CKPT", help="a run (id, prefix or name), a sweep, or a checkpoint file")
    parser.add_argument("out", metavar="OUT", nargs="?", type=Path, help="folder to write (default: ./NAME-bundle)")
    parser.add_argument("--to", default="onnx", metavar="LIST", help="of onnx,openvino,tensorrt,torch (default: onnx)")
    parser.add_argument("--precision", default="fp32", metavar="LIST", help="of fp32,fp16,bf16,int8 (default: fp32)")
    parser.add_argument("--workspace", metavar="SIZE", help="scratch memory of an engine's kernels (default: 1GiB)")
    parser.add_argument("--version-compatible", action="store_true", help="engines that later minor releases run too")
    parser.add_argument("--hardware-compatible", action="store_true", help="engines that every GPU from Ampere on runs")
    parser.add_argument("--prune", type=float, metavar="RATIO", help="take out channels first and fine-tune: 0.5, say")
    parser.add_argument(
        "--cases", type=int, metavar="N", help="validation cases to compare on (default: 8, of whole images up to 500)"
    )
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
    from medlight.callbacks.export import available, registered, tags
    from medlight.cli.progress import bar
    from medlight.deploy.export import CAN, check_targets, export
    from medlight.launch.fit import quiet

    quiet()
    ready(args.json)
    say_clash()
    wanted, precision = ([name.strip() for name in text.split(",")] for text in (args.to, args.precision))
    check_targets(wanted, precision)
    engines = _engines(args, wanted)
    check_threads(args.threads)
    if args.cases is not None and args.cases < 1:
        raise UsageError(f"--cases {args.cases}: at least 1, or --unchecked")
    if args.prune is not None and not 0 < args.prune < 1:
        raise UsageError(f"--prune {args.prune}: a share of the channels; write a number between 0 and 1, as 0.5")
    subject = _find(args.model)
    if args.prune is not None and subject.run_id is None:
        raise UsageError("--prune: a bare checkpoint has no recipe to fine-tune by; mend: name its run")
    if args.prune is not None:
        _check_whole(args, subject)
    targets, skipped = available(wanted)
    if skipped:
        _say(args, f"TensorRT is skipped: {skipped}")
    absent = [f"{t}-{p}" for t in targets for p in precision if p not in CAN[t]]
    if absent:
        _say(args, f"not made, for the runtime has no such precision: {', '.join(absent)}")
    options: dict[str, Any] = {**_cases(args, subject, precision), "threads": args.threads}
    with tempfile.TemporaryDirectory() as folder:
        steps: Steps = {}
        if args.prune is not None:
            with _failures_recorded(subject, steps):
                before = export(subject.checkpoint, Path(folder) / "before", **options)
            untuned = _without_channels(subject.checkpoint, args.prune, Path(folder) / "untuned.ckpt")
            with _failures_recorded(subject, steps, figures=False):  # they are of a network that no run has
                narrow = export(untuned, Path(folder) / "untuned", **options)
            steps = {"before_pruning": _rows(before, args.threads), "before_fine_tuning": _rows(narrow, args.threads)}
            subject = _pruned(args, subject)
        out = args.out or Path(f"{subject.name}-bundle")
        replaced = (out / "bundle.json").is_file()
        options |= {"to": targets, "precision": precision, "run_id": subject.run_id, "engines": engines}
        compared = bar("comparing with torch", len(options["cases"] or ()))
        with _failures_recorded(subject, steps), compared as progress:
            bundle = export(subject.checkpoint, out, progress=progress, say=partial(_say, args), **options)
        if replaced:
            _say(args, f"{out}: replaces the bundle that was there")
        _record(subject, tags(bundle, skipped), bundle.parity, bundle.root)
        rows = _rows(bundle, args.threads)
        _record_steps(subject, {**steps, "pruned": rows} if steps else {})
        if subject.run_id and bundle.checked:
            address = registered(bundle, subject.run_id)
            _record(subject, {"medlight.model": address}, {})
            _say(args, f"registered: {address}")
        _show(args, bundle, rows, steps)
    return 0


def _engines(args: argparse.Namespace, to: Sequence[str]) -> Options:
    """Return what TensorRT's engines are built with; UsageError where none is asked for."""
    from medlight.cli.serve import size_of

    given = {
        "--workspace": args.workspace,
        "--version-compatible": args.version_compatible,
        "--hardware-compatible": args.hardware_compatible,
    }
    for name, value in given.items():
        if value and "tensorrt" not in to:
            raise UsageError(f"{name}: only TensorRT's engines have it; mend: add tensorrt to --to, or leave it out")
    options: Options = {
        "version_compatible": args.version_compatible,
        "hardware_compatible": args.hardware_compatible,
    }
    return options | {"workspace": size_of("--workspace", args.workspace)} if args.workspace else options


@contextmanager
def _failures_recorded(subject: _Subject, steps: Steps, figures: bool = True) -> Iterator[None]:
    """Tag the run where an export fails in the block, for whatever reason but a wrong call.

    steps: written to the run then. figures: let those of the failed comparison be metrics of the run.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        _record(subject, {"medlight.export": "failed"}, getattr(error, "figures", {}) if figures else {})
        _record_steps(subject, steps)
        raise


def _check_whole(args: argparse.Namespace, subject: _Subject) -> None:
    """Refuse to prune what was pruned before: the recipe would begin with weights that do not fit its network."""
    from medlight.tasks.checkpoint import read

    ratio = (read(subject.checkpoint).get("medlight") or {}).get("pruned")
    if ratio:
        raise UsageError(
            f"--prune {args.prune:g}: {subject.name} is pruned already, by {ratio:g}; mend: name the run that it was "
            "made of, with a higher ratio, or leave --prune out"
        )


def _without_channels(checkpoint: Path, ratio: float, out: Path) -> Path:
    """Write a checkpoint of the pruned network as it is before the fit that mends it."""
    import torch

    from medlight import tasks
    from medlight.tasks.checkpoint import read

    content, task = read(checkpoint), tasks.load(checkpoint)
    task.prune(ratio)
    task.on_save_checkpoint(content)
    torch.save({**content, "state_dict": task.state_dict()}, out)
    return out


def _pruned(args: argparse.Namespace, subject: _Subject) -> _Subject:
    """Fit a run's network again with fewer channels, by its own recipe, as a run of its own; a cut fit goes on."""
    from medlight import config
    from medlight.launch.fit import Launch, fit
    from medlight.launch.resolve import resolve
    from medlight.tasks import pretrained
    from medlight.tracking import store
    from medlight.tracking.manifest import config_digest

    assert subject.run_id is not None
    written = config.load_yaml(store.artifact(subject.run_id, "config.yaml"))
    callback = {"class_path": "medlight.callbacks.ChannelPruning", "init_args": {"ratio": args.prune}}
    callbacks = (written.get("trainer") or {}).get("callbacks") or []
    written = config.set_path(written, "trainer.callbacks", [callback, *callbacks])
    written = config.set_path(written, pretrained.KEY, f"run:{subject.run_id}")
    name = f"{subject.name}-pruned"
    resolved = resolve(written)
    cut = store.unfinished(str(resolved["study"] or "medlight"), name, config_digest(resolved))
    _say(args, f"fine-tuning {name}: {args.prune:g} of the channels of {subject.name} are taken out")
    if cut:
        _say(args, f"run {cut[0].info.run_id} was cut, and goes on")
    try:
        found = fit(written, Launch(name=name, resume=bool(cut)))
    except InterruptedFitError:
        raise MedlightError(f"{name}: interrupted; the same command goes on with it") from None
    if found.best_checkpoint is None:
        raise MedlightError(f"{name}: the fit wrote no checkpoint")
    return _Subject(found.best_checkpoint, name, found.run_id)


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
    return _Subject(store.best_checkpoint(run_id), name, run_id)


def _cases(args: argparse.Namespace, subject: _Subject, precision: Sequence[str]) -> dict[str, Any]:
    """Return what of `export`'s arguments the data give, of the run or of the file named.

    cases: validation cases to compare on. training: for INT8 and float16. recorded: what runs call the cases.
    """
    from medlight.callbacks.export import compared

    source = args.data
    if source is None and subject.run_id:
        from medlight.tracking import store

        source = store.artifact(subject.run_id, "config.yaml")
    if args.unchecked and (source is None or not {"int8", "fp16"} & set(precision)):
        return {"cases": None}
    if source is None:
        raise UsageError(
            f"{subject.checkpoint}: no validation cases are known for a bare checkpoint; "
            "mend: --data FIT.yaml, or --unchecked"
        )
    data = _data(source)
    found = {"training": data.prepared["train"], "recorded": data.recorded}
    if args.unchecked:
        return {"cases": None, **found}
    cases = [prepared.case for prepared in data.prepared["val"]]
    if not cases:
        raise UsageError(f"{source}: its split has no validation cases; mend: --data another file, or --unchecked")
    kind = "segmentation" if data.signature()["labels"] else "classification"
    return {"cases": compared(cases, args.cases, kind), **found}


def _data(source: Path) -> Any:
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
    data.setup("fit")
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


def _record_steps(subject: _Subject, steps: Steps) -> None:
    """Write what pruning and fine-tuning did to the pruned network's run: pruning.json, and the scores as metrics."""
    if not steps or subject.run_id is None:
        return
    from medlight.tracking import store

    client = store.client()
    with store.reached():
        client.log_dict(subject.run_id, steps, "pruning.json")
        for step, rows in steps.items():
            for name in ("dice", "auroc"):
                if rows[0][name] is not None:
                    client.log_metric(subject.run_id, f"export/{step}/{name}", rows[0][name])


def _show(args: argparse.Namespace, bundle: Bundle, models: list[Row], steps: Steps) -> None:
    """Print what each model costs, how far it is from the network, and the same of each step towards the bundle."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    figures = bundle.parity
    compared = f"torch on {figures['cases']} validation cases" if "cases" in figures else "nothing (--unchecked)"
    score = "Dice" if bundle.task == "segmentation" else "AUROC"
    costs = Table("model", "file", "MB", "Gflop", "ms a window", score, box=box.SIMPLE_HEAD)
    apart = Table("model", *_APART, box=box.SIMPLE_HEAD)
    for step, rows in {**steps, "": models}.items():
        for row in rows:
            name = f"{_TITLES.get(step, '')}{row['model']}"
            costs.add_row(name, *_costs(row))
            if row["difference"] is not None:
                apart.add_row(name, *_apart(row))
    console = Console(stderr=args.json == "-")
    if not console.is_terminal:
        console = Console(stderr=args.json == "-", width=180)
    console.print(f"{bundle.root}: compared with {compared}", soft_wrap=True, highlight=False)
    console.print(costs)
    if apart.rows:
        console.print(apart)
    model = bundle.models[0]
    sizes = f" (spatial sizes in multiples of {model.size_multiple})" if model.size_multiple > 1 else ""
    console.print(f"free sizes: {', '.join(model.dynamic_axes)}{sizes}")
    found = {"bundle": str(bundle.root), "run_id": bundle.run_id, "parity": figures, "models": models}
    write_json(args.json, found | ({"steps": steps} if steps else {}))


def _rows(bundle: Bundle, threads: int | None) -> list[Row]:
    """Return what each model of a bundle costs and says; what is not known is None.

    Keys: model, file, bytes, parameters and flops (of the network; of one window), ms (a window, here), dice, auroc
    (means over the cases), max_abs_diff and mean_abs_diff (of probabilities), worst_case (as runs call it), judged_by,
    difference, tolerance.
    """
    from medlight.deploy.runtime.choice import seconds_a_window

    of_models = {bundle.models[0].name: bundle.parity, **bundle.parity.get("models", {})}
    times = seconds_a_window(bundle, threads)
    return [
        {
            "model": model.name,
            "file": model.file,
            "bytes": (bundle.root / model.file).stat().st_size,
            "parameters": bundle.network["parameters"],
            "flops": bundle.network["flops"],
            "ms": 1000 * times[model.name] if model.name in times else None,
            **_figures(of_models.get(model.name, {})),
        }
        for model in bundle.models
    ]


def _figures(figures: dict[str, Any]) -> Row:
    judged, apart = "probabilities", figures.get("max_abs_diff")
    if figures.get("precision", "fp32") != "fp32":
        judged, apart = figures["score"], figures["score_diff"]
    means = {name: (figures.get(name) or {}).get("bundle") for name in ("dice", "auroc")}
    known = {name: figures.get(name) for name in ("max_abs_diff", "mean_abs_diff", "worst_case", "tolerance")}
    return {**means, **known, "judged_by": judged if apart is not None else None, "difference": apart}


def _costs(row: Row) -> list[str]:
    """Return a row of the first table."""
    speed = "-" if row["ms"] is None else f"{row['ms']:.1f}"
    score = row["auroc"] if row["dice"] is None else row["dice"]
    sizes = [f"{row['bytes'] / 1e6:.1f}", f"{row['flops'] / 1e9:.2f}"]
    return [row["file"], *sizes, speed, "-" if score is None else f"{score:.4f}"]


def _apart(row: Row) -> list[str]:
    """Return a row of the second table: how far a model is from the network, on which case most, and by what judged."""
    from rich.markup import escape

    judged = "largest" if row["judged_by"] == "probabilities" else f"{row['judged_by']} {row['difference']:.1e}"
    spread = [f"{row['max_abs_diff']:.1e}", f"{row['mean_abs_diff']:.1e}"]
    return [*spread, escape(row["worst_case"]), judged, f"{row['tolerance']:g}"]


def _say(args: argparse.Namespace, line: str) -> None:
    import sys

    print(line, file=sys.stderr if args.json == "-" else sys.stdout)
