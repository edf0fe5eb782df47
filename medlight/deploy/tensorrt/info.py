"""What an engine was built with and for, and what is done where that does not fit: it is built again from the graph."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medlight.deploy.bundle import sha256
from medlight.deploy.tensorrt.build import GIB, Options, Profile, build
from medlight.deploy.tensorrt.engine import Engine, write_report
from medlight.deploy.tensorrt.package import ANY, Package, find
from medlight.errors import MedlightError
from medlight.scans.files import replacing


@dataclass(frozen=True)
class Machine:
    """Where an engine is to run: the package, its version, the GPU's architecture (``SM90``), the operating system."""

    package: Package
    version: str
    architecture: str
    system: str

    @classmethod
    def here(cls, packages: Sequence[Package] = ANY) -> Machine:
        """Return this machine; UsageError where no TensorRT is installed, MedlightError where there is no GPU."""
        import torch

        trt = find(packages)
        if not torch.cuda.is_available():
            raise MedlightError("an engine needs a CUDA device, and there is none; mend: run the bundle's ONNX model")
        major, minor = torch.cuda.get_device_capability()
        return cls(trt.__name__, trt.__version__, f"SM{major}{minor}", _system())


@dataclass(frozen=True)
class EngineInfo:
    """The record kept beside an engine; plain values, so that JSON holds it.

    architectures: of the GPUs that it was built for.
    profiles, workspace: as `build` takes them, to build it again alike.
    """

    package: Package
    version: str
    architectures: list[str]
    system: str
    profiles: list[dict[str, list[list[int]]]]
    workspace: int = GIB
    version_compatible: bool = False
    hardware_compatible: bool = False

    @classmethod
    def of(
        cls,
        machine: Machine,
        profiles: Mapping[str, Profile] | Sequence[Mapping[str, Profile]],
        *,
        compute_capabilities: Sequence[str] = (),
        workspace: int = GIB,
        version_compatible: bool = False,
        hardware_compatible: bool = False,
    ) -> EngineInfo:
        """Describe an engine that `build` makes of the same arguments on a machine."""
        several = [profiles] if isinstance(profiles, Mapping) else profiles
        plain = [{name: [list(shape) for shape in shapes] for name, shapes in one.items()} for one in several]
        targets = list(compute_capabilities) or [machine.architecture]
        flags = (version_compatible, hardware_compatible)
        return cls(machine.package, machine.version, targets, machine.system, plain, workspace, *flags)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EngineInfo:
        """Read a record back from JSON's values."""
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain values."""
        return dataclasses.asdict(self)

    def misfit(self, machine: Machine) -> str | None:
        """Return in a few words why the engine can't run on a machine, or None where it can."""
        if self.package != machine.package:
            return f"it was built by {self.package}, and {machine.package} is here"
        if self.system != machine.system:
            return f"it was built on {self.system}, and this is {machine.system}"
        if not self._runs_in(machine.version):
            return f"it was built by {self.package} {self.version}, and {machine.version} is here"
        if not self._runs_on(machine.architecture):
            return f"it was built for {', '.join(self.architectures)}, and this GPU is {machine.architecture}"
        return None

    def _runs_in(self, version: str) -> bool:
        if not self.version_compatible:
            return version == self.version
        here, there = _numbers(version), _numbers(self.version)
        return here[0] == there[0] and here >= there

    def _runs_on(self, architecture: str) -> bool:
        if self.hardware_compatible and _generation(architecture) >= 80:  # Ampere
            return True
        return architecture in self.architectures


@dataclass(frozen=True)
class Fitting:
    """An engine that fits a machine.

    note: a sentence where it had to be built again, else None.
    kept: the file in the cache that holds what was built again, if one does.
    fresh: whether it was built just now.
    """

    plan: bytes
    info: EngineInfo
    note: str | None = None
    kept: Path | None = None
    fresh: bool = False


def fitting(
    onnx: Path,
    engine: Path,
    info: EngineInfo,
    machine: Machine,
    *,
    cache: Path | None = None,
    timing_cache: Path | None = None,
) -> Fitting:
    """Return an engine that fits a machine: the one that is there, or one built again from the graph.

    cache: folder that keeps what is built (a bundle is never changed) for the next time.
    """
    reason = info.misfit(machine)
    if reason is None:
        return Fitting(engine.read_bytes(), info)
    return _again(onnx, info, machine, reason, cache, timing_cache)


def load_or_rebuild(
    onnx: Path,
    engine: Path,
    info: EngineInfo,
    *,
    cache: Path | None = None,
    timing_cache: Path | None = None,
) -> tuple[Engine, Fitting]:
    """Load an engine, built again from the graph where it doesn't fit this machine or TensorRT refuses it.

    What is built again is kept in the cache with a report of its layers beside it (``.layers.json``); where there can
    be none, the note says why.

    Raises MedlightError where there is no CUDA device, UsageError where TensorRT is not installed.
    """
    machine = Machine.here((info.package, *ANY))
    found = fitting(onnx, engine, info, machine, cache=cache, timing_cache=timing_cache)
    while True:
        try:
            return _reported(_load(found), found)
        except MedlightError as error:
            if found.fresh:
                raise
            refused = found.kept is not None  # in place of a bundle's own engine, one that was built here may do
            found = _again(onnx, info, machine, str(error), cache, timing_cache, anew=refused)


def _reported(engine: Engine, found: Fitting) -> tuple[Engine, Fitting]:
    """Write the report of an engine that was built again, where there is none yet."""
    report = found.kept.with_suffix(".layers.json") if found.kept else None
    if report is None or report.is_file():
        return engine, found
    reason = write_report(engine, report)
    return engine, dataclasses.replace(found, note=f"{found.note}; {reason}") if reason else found


def _load(found: Fitting) -> Engine:
    return Engine(found.plan, (found.info.package,), version_compatible=found.info.version_compatible)


def _again(
    onnx: Path,
    info: EngineInfo,
    machine: Machine,
    reason: str,
    cache: Path | None,
    timing_cache: Path | None,
    *,
    anew: bool = False,
) -> Fitting:
    """Build an engine with the options of an earlier one, or take what was so built; ``anew``: build it always."""
    rtx = machine.package == "tensorrt_rtx"
    options: Options = {"workspace": info.workspace}
    if not rtx:
        options |= {"version_compatible": info.version_compatible, "hardware_compatible": info.hardware_compatible}
    profiles = [{name: _profile(shapes) for name, shapes in one.items()} for one in info.profiles]
    wanted = EngineInfo.of(machine, profiles, **options)
    file = cache / f"{_key(onnx, wanted)}.engine" if cache is not None else None
    if file is not None and file.is_file() and not anew:
        note = f"a TensorRT engine that was built here from {onnx.name} is used: {reason}"
        return Fitting(file.read_bytes(), wanted, note, file)
    targets = [machine.architecture] if rtx else []
    packages = (machine.package,)
    plan = build(onnx, profiles, packages=packages, compute_capabilities=targets, timing_cache=timing_cache, **options)
    if file is not None:
        try:
            with replacing(file) as temporary:
                temporary.write_bytes(plan)
            file.with_suffix(".layers.json").unlink(missing_ok=True)  # of an earlier build
        except OSError:
            file = None  # a home that can't be written to: the next start builds again
    return Fitting(plan, wanted, f"the TensorRT engine was built again from {onnx.name}: {reason}", file, True)


def _key(onnx: Path, info: EngineInfo) -> str:
    text = json.dumps([sha256(onnx), info.to_dict()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _profile(shapes: Sequence[Sequence[int]]) -> Profile:
    smallest, best, largest = (tuple(shape) for shape in shapes)
    return smallest, best, largest


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdigit()]


def _generation(architecture: str) -> int:
    digits = architecture.removeprefix("SM")
    return int(digits) if digits.isdigit() else 0


def _system() -> str:
    return f"{platform.system()}-{platform.machine()}"
