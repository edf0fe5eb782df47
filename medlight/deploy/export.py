"""A checkpoint becomes a bundle, and is published only if every model in it says what the network says."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from medlight.deploy import requirements, tensorrt
from medlight.deploy.bundle import DESCRIPTION, PARITY, Bundle, Model, sha256
from medlight.deploy.onnx_export import Exported, export_onnx
from medlight.deploy.parity import ParityError, allowed, compare, describe
from medlight.deploy.runtime.predictor import Predictor
from medlight.deploy.runtime.session import OnnxSession, open_session, timing_cache
from medlight.errors import MedlightError, UsageError, one_line
from medlight.networks.prune import flops
from medlight.prepare.case import Case

if TYPE_CHECKING:
    from medlight.prepare import PreparedCase

Target = Literal["onnx", "openvino", "tensorrt", "torch"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
Progress = Callable[[int, int], None]
Say = Callable[[str], None]
RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino", "tensorrt": "tensorrt", "torch": "torch"}
CAN: dict[str, tuple[str, ...]] = {
    "onnx": ("fp32", "fp16", "int8"),
    "openvino": ("fp32", "bf16", "int8"),  # fp16: most processors lack it, and OpenVINO takes bf16 without a word
    "tensorrt": ("fp32", "fp16", "int8"),  # bf16: TensorRT can't build 3D deconvolutions
    "torch": ("fp32", "bf16"),
}
Array = npt.NDArray[np.float32]
INT8_LIMIT = 0.01  # how far INT8 may be from float32 on training patches, see `_distance`
_PACKAGES = ("medlight", "torch", "monai", "onnx", "onnxscript", "onnxruntime", "openvino", "numpy", "tensorrt")


def check_targets(to: Sequence[str], precision: Sequence[str] = ("fp32",)) -> None:
    """Raise UsageError for a target or a precision that does not exist, or that no target can run."""
    for name in to:
        if name not in get_args(Target):
            there = ", ".join(get_args(Target))
            raise UsageError(f"--to {name or 'has an empty name'}: no such target; mend: one of {there}")
    for name in precision:
        if name not in get_args(Precision):
            there = ", ".join(get_args(Precision))
            raise UsageError(f"--precision {name or 'has an empty name'}: no such precision; mend: one of {there}")
        if not any(name in CAN[target] for target in to):
            able = " or ".join(target for target, names in CAN.items() if name in names)
            raise UsageError(f"--precision {name}: {', '.join(to)} can't run it; mend: add {able} to --to")
    if "onnx" not in to:
        raise UsageError(f"--to {','.join(to)}: every bundle has an ONNX model; mend: --to onnx,{','.join(to)}")


def export(
    checkpoint: Path,
    out: Path,
    *,
    cases: Sequence[Case] | None,
    to: Sequence[str] = ("onnx",),
    precision: Sequence[str] = ("fp32",),
    training: Sequence[PreparedCase] = (),
    recorded: Mapping[str, str] | None = None,
    run_id: str | None = None,
    threads: int | None = None,
    engines: tensorrt.Options | None = None,
    progress: Progress | None = None,
    say: Say | None = None,
) -> Bundle:
    """Make a bundle of a checkpoint at ``out``, once each of its models was compared with torch on whole cases.

    cases: what the parity is measured on; None writes a bundle that says it is unchecked.
    to: ``onnx`` and perhaps others (see `tensorrt.unavailable` for whether an engine can be built).
    precision: of the models; each target makes those it can run. float32 is always there.
    training: cases that ``int8`` is calibrated on, and that show where the values of ``fp16`` would be too large.
    recorded: what runs call the cases, by id (`ScanDataModule.recorded`); so do parity.json and the errors.
    engines: options that TensorRT's engines are built with; a rebuild on another machine takes the same.
    progress: called with the cases compared and their total.
    say: called with a line on what is there to know of the models: which layers of INT8 stay in float32, that values in
        float16 were not looked at, why there is no report of an engine.

    Raises ParityError with the figures where a model is outside its tolerance (nothing is left at ``out``), UsageError
    where ``out`` is there and is no bundle, or there is no case to compare on, MedlightError where a target or a
    precision can't be made of this network.
    """
    from medlight import tasks

    check_targets(to, precision)
    if cases is not None and not cases:
        raise UsageError("there is no case to compare the bundle with torch on; mend: name some, or pass --unchecked")
    task = tasks.load(checkpoint)
    with _published(Path(out)) as folder:
        maker = _Maker(task, folder, training, engines or {}, say or (lambda line: None))
        for target in sorted(to, key=list(CAN).index):
            for name in (p for p in get_args(Precision) if p in ("fp32", *precision) and p in CAN[target]):
                maker.add(target, name)
        tools = {**_tools(), "exporter": maker.made.exporter}
        network = {"flops": maker.flops, "parameters": maker.parameters, "pruned": task.pruned}
        described = {**task.signature(), "tools": tools, "network": network, "run_id": run_id}
        bundle = Bundle(root=folder, models=maker.models, **described)
        figures = {"checked": False} if cases is None else _checked(task, bundle, cases, threads, progress, recorded)
        (folder / requirements.FILE).write_text(requirements.requirements(maker.models))
        (folder / PARITY).write_text(json.dumps(figures, indent=2) + "\n")
        models = {model.file for model in maker.models}
        digests = {file.name: sha256(file) for file in sorted(folder.iterdir()) if file.name not in models}
        dataclasses.replace(bundle, parity=_summary(figures), digests=digests).save()
    return Bundle.load(Path(out))


class _Maker:
    """Writes the files of a bundle, each graph once, whichever runtimes take it."""

    def __init__(
        self, task: Any, folder: Path, training: Sequence[PreparedCase], options: tensorrt.Options, say: Say
    ) -> None:
        self._signature = task.signature()
        self._module, self._folder, self._training = task.deployable(), folder, training
        self._options, self._say = options, say
        self._channels = len(self._signature["data"]["channels"])
        self._window = list(self._signature["window"]["size"])
        self.flops = flops(self._module, torch.zeros(1, self._channels, *self._window))
        self.parameters = sum(parameter.numel() for parameter in self._module.parameters())
        self._graph = folder / "model.onnx"
        self.made: Exported = export_onnx(self._module, self._channels, self._window, self._graph)
        self.models: list[Model] = []
        self._engines: dict[str, dict[str, Any]] = {}  # what each was built with, by file
        self._kept: list[str] = []  # layers of the INT8 graph that stay in float32

    def add(self, target: str, precision: str) -> None:
        """Make the file of a model where it is not there, and list it."""
        try:
            file = self._file(target, precision)
        except MedlightError:
            raise
        except Exception as error:  # each library refuses a network in its own words, often pages of them
            out = target if precision == "fp32" else precision
            what = f"{RUNTIMES[target]}-{precision} can't be made of this network"
            raise MedlightError(f"{what}: {one_line(error)[:300]}; mend: leave {out} out") from error
        axes, multiple, engine = self.made.dynamic_axes, self.made.size_multiple, None
        if target == "tensorrt":
            axes, multiple, engine = ["batch"], 1, self._engines[file.name]
        kept = self._kept if precision == "int8" else []
        self.models.append(Model(file.name, RUNTIMES[target], precision, sha256(file), axes, multiple, engine, kept))

    def _file(self, target: str, precision: str) -> Path:
        match target:
            case "torch":
                return self._program()
            case "tensorrt":
                return self._engine(precision)
            case "openvino" if precision != "int8":  # it computes in the precision it is told, from the same graph
                return self._graph
        return self._onnx(precision)

    def _onnx(self, precision: str) -> Path:
        file = self._folder / ("model.onnx" if precision == "fp32" else f"model_{precision}.onnx")
        if file.exists():
            return file
        if precision == "fp16":
            from medlight.deploy.half import to_fp16

            if not self._training:
                self._say(
                    f"{file.name}: no training cases are known, so values beyond float16's range are not looked for"
                )
            to_fp16(self._graph, file, self._batches if self._training else ())
            return file
        from medlight.deploy.quantise import quantise_within

        if not self._training:
            raise UsageError("int8 is calibrated on training patches, and no data are known; mend: --data FIT.yaml")
        distance = _distance(self._graph, self._batches)
        done = quantise_within(self._graph, file, self._batches, distance, INT8_LIMIT)
        self._kept = done.kept
        if done.kept:
            layers = f"{len(done.kept)} of {len(done.kept) + done.nodes} layers stay in float32"
            self._say(f"{file.name}: {layers}, for INT8 costs too much there: {', '.join(done.kept)}")
        return file

    @cached_property
    def _batches(self) -> list[Array]:
        """Training patches as the graph takes them."""
        from medlight.deploy.calibration import calibration_batches

        return calibration_batches(self._training, self._signature)

    def _engine(self, precision: str) -> Path:
        """Build an engine for this machine's GPU, with one profile: the window, in batches of 1 to 4."""
        smallest, best, largest = ((batch, self._channels, *self._window) for batch in (1, 1, 4))
        profiles = {"image": (smallest, best, largest)}
        machine = tensorrt.Machine.here(("tensorrt",))
        source, timings = self._onnx(precision), timing_cache()
        plan = tensorrt.build(source, profiles, packages=("tensorrt",), timing_cache=timings, **self._options)
        file = self._folder / ("model.engine" if precision == "fp32" else f"model_{precision}.engine")
        file.write_bytes(plan)
        info = tensorrt.EngineInfo.of(machine, profiles, **self._options)
        report, lasting = file.with_suffix(".layers.json"), info.version_compatible
        if reason := tensorrt.write_report(plan, report, ("tensorrt",), version_compatible=lasting):
            self._say(f"{file.name}: {reason}")
        self._engines[file.name] = info.to_dict()
        return file

    def _program(self) -> Path:
        from medlight.deploy.torch_program import export_program

        file = self._folder / "model.pt2"
        if not file.exists():
            export_program(self._module, self._channels, self._window, self.made, file)
        return file


def _distance(graph: Path, batches: Sequence[Array]) -> Callable[[Path], float]:
    """Return how far another graph's probabilities are from this one's: 1 minus their soft Dice, mean over outputs."""
    session = OnnxSession(graph, 1)
    expected = [session(batch) for batch in batches]

    def distance(other: Path) -> float:
        session = OnnxSession(other, 1)
        apart = both = np.zeros(expected[0].shape[1])
        for batch, reference in zip(batches, expected, strict=True):
            found = session(batch)
            axes = (0, *range(2, found.ndim))
            apart = apart + np.abs(found - reference).sum(axes, dtype=np.float64)
            both = both + (found + reference).sum(axes, dtype=np.float64)
        return float(np.mean(apart / np.maximum(both, 1e-12)))

    return distance


def _checked(
    task: Any,
    bundle: Bundle,
    cases: Sequence[Case],
    threads: int | None,
    progress: Progress | None,
    recorded: Mapping[str, str] | None,
) -> dict[str, Any]:
    """Compare every model with torch; return the figures of the first, with those of the others below ``models``."""
    predictors = {}
    for model in bundle.models:
        session = open_session(bundle, model, threads)
        predictors[model.name] = (model.precision, Predictor(bundle, session=session))
    figures = compare(task, predictors, cases, progress, recorded)
    first, *others = figures
    found = {**figures[first], "models": {name: figures[name] for name in others}}
    for name, of_model in figures.items():
        if not of_model["passed"]:
            raise ParityError(
                f"the exported {name} differs from the trained network: {describe(of_model)}; "
                f"{allowed(of_model)}; nothing was written{_MEND.get(of_model['precision'], '')}",
                found,
            )
    return found


_MEND = {
    "fp16": "; mend: leave fp16 out",
    "bf16": "; mend: leave bf16 out",
    "int8": "; mend: leave int8 out, compare on more cases, or fine-tune with medlight.callbacks.QuantizationAware",
}


def _summary(figures: dict[str, Any]) -> dict[str, Any]:
    """Return the figures without those of each case."""
    kept = {key: value for key, value in figures.items() if key not in ("per_case", "models")}
    others = {name: _summary(of_model) for name, of_model in figures.get("models", {}).items()}
    return {**kept, "models": others} if others else kept


@contextmanager
def _published(out: Path) -> Iterator[Path]:
    """Give a folder beside ``out`` that takes its place once the block is through; on an error nothing is left."""
    if out.exists() and not (out / DESCRIPTION).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there and is no bundle; mend: name another place, or remove it")
    folder = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"{out}: can't be written to ({error.strerror}); mend: give another OUT") from None
    try:
        yield folder
        if out.exists():
            shutil.rmtree(out)
        folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _tools() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
