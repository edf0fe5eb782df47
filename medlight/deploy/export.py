"""A checkpoint becomes a bundle, and is published only if the bundle says what the network says."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

from medlight.deploy import tensorrt
from medlight.deploy.bundle import DESCRIPTION, PARITY, Bundle, Model, sha256
from medlight.deploy.onnx_export import export_onnx
from medlight.deploy.parity import TOLERANCE, ParityError, compare, describe
from medlight.deploy.runtime.predictor import Predictor
from medlight.errors import UsageError
from medlight.prepare.case import Case

Target = Literal["onnx", "tensorrt"]
Progress = Callable[[int, int], None]
_PACKAGES = ("medlight", "torch", "monai", "onnx", "onnxscript", "onnxruntime", "numpy", "tensorrt", "tensorrt_rtx")


def check_targets(to: Sequence[str]) -> None:
    """Raise UsageError for a target that does not exist."""
    known = get_args(Target)
    for name in to:
        if name not in known:
            raise UsageError(f"--to {name}: no such target; mend: one of {', '.join(known)}")
    if "onnx" not in to:
        raise UsageError(f"--to {','.join(to)}: every bundle has an ONNX model; mend: --to onnx,{','.join(to)}")


def export(
    checkpoint: Path,
    out: Path,
    *,
    cases: Sequence[Case] | None,
    to: Sequence[str] = ("onnx",),
    run_id: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Make a bundle of a checkpoint at ``out``, once it was compared with torch on whole cases.

    cases: what the parity is measured on; None writes a bundle that says it is unchecked.
    to: ``onnx`` and perhaps ``tensorrt`` (see `tensorrt.unavailable` for whether that can be); an engine that is not
        what torch says is left out, and `engine_left_out` says why.
    progress: called with the cases compared and their total.

    Raises ParityError with the figures where probabilities differ by more than 1e-4 (nothing is left at ``out``),
    UsageError where ``out`` is there and is no bundle, or there is no case to compare on.
    """
    from medlight import tasks

    check_targets(to)
    if cases is not None and not cases:
        raise UsageError("there is no case to compare the bundle with torch on; mend: name some, or pass --unchecked")
    task = tasks.load(checkpoint)
    with _published(Path(out)) as folder:
        bundle = _with_onnx(task, folder, run_id)
        if cases is None:
            bundle = dataclasses.replace(bundle, parity={"checked": False})
        else:
            figures = _checked(task, Predictor(bundle, threads), cases, progress)
            bundle = dataclasses.replace(bundle, parity=figures)
        if "tensorrt" in to:
            bundle = _with_tensorrt(bundle, task, cases)
        (folder / PARITY).write_text(json.dumps(bundle.parity, indent=2) + "\n")
        summary = {key: value for key, value in bundle.parity.items() if key != "per_case"}
        dataclasses.replace(bundle, parity=summary).save()
    return Bundle.load(Path(out))


def _with_onnx(task: Any, folder: Path, run_id: str | None) -> Bundle:
    signature = task.signature()
    file = folder / "model.onnx"
    made = export_onnx(task.deployable(), len(signature["data"]["channels"]), signature["window"]["size"], file)
    model = Model(file.name, "onnxruntime", "fp32", sha256(file), made.dynamic_axes, made.size_multiple)
    tools = {**_tools(), "exporter": made.exporter}
    return Bundle(root=folder, models=[model], tools=tools, run_id=run_id, **signature)


def _checked(task: Any, predictor: Predictor, cases: Sequence[Case], progress: Progress | None) -> dict[str, Any]:
    figures, worst = compare(task, predictor, cases, progress)
    if not figures["passed"]:
        raise ParityError(
            f"the exported model is not the trained one: {describe(figures, worst)}; tolerance {TOLERANCE:g}; "
            "nothing was written",
            figures,
        )
    return figures


def _with_tensorrt(bundle: Bundle, task: Any, cases: Sequence[Case] | None) -> Bundle:
    """Add an engine for this machine's GPU, with one profile: the window, in batches of 1 to 4.

    It is compared with torch as the ONNX model was (``parity["tensorrt"]``), and left out where it differs.
    """
    channels, window = len(bundle.data["channels"]), bundle.window["size"]
    smallest, best, largest = ((batch, channels, *window) for batch in (1, 1, 4))
    source = bundle.root / bundle.model("onnxruntime").file
    plan = tensorrt.build(source, {"image": (smallest, best, largest)}, packages=("tensorrt",))
    if cases is not None:
        figures, _ = compare(task, Predictor(bundle, session=tensorrt.EngineSession(plan)), cases)
        del figures["per_case"]
        bundle = dataclasses.replace(bundle, parity={**bundle.parity, "tensorrt": figures})
        if not figures["passed"]:
            return bundle
    file = bundle.root / "model.engine"
    file.write_bytes(plan)
    model = Model(file.name, "tensorrt", "fp32", sha256(file), ["batch"], 1)
    return dataclasses.replace(bundle, models=[*bundle.models, model])


def engine_left_out(bundle: Bundle) -> str | None:
    """Return why a bundle has no engine though one was built, or None."""
    figures = bundle.parity.get("tensorrt")
    if not figures or figures["passed"]:
        return None
    return f"its probabilities differ from torch by up to {figures['max_abs_diff']:.2g} (tolerance {TOLERANCE:g})"


@contextmanager
def _published(out: Path) -> Iterator[Path]:
    """Give a folder beside ``out`` that takes its place once the block is through; on an error nothing is left."""
    if out.exists() and not (out / DESCRIPTION).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there and is no bundle; mend: name another place, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.tmp")
    folder.mkdir()
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
