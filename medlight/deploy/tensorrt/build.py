"""An ONNX graph becomes an engine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from medlight.deploy.tensorrt.package import ANY, Package, find, is_rtx, logger, said
from medlight.errors import MedlightError, UsageError
from medlight.scans.files import replacing

Shape = tuple[int, ...]
Profile = tuple[Shape, Shape, Shape]  # smallest, best, largest
Profiles = Mapping[str, Profile]  # of each input with free sizes
GIB = 1 << 30


class Options(TypedDict, total=False):
    """Arguments of `build` that a caller chooses, and that an engine's record keeps; what they mean stands there."""

    workspace: int
    version_compatible: bool
    hardware_compatible: bool


def build(
    onnx: Path,
    profiles: Profiles | Sequence[Profiles],
    *,
    packages: Sequence[Package] = ANY,
    workspace: int = GIB,
    compute_capabilities: Sequence[str] = (),
    timing_cache: Path | None = None,
    version_compatible: bool = False,
    hardware_compatible: bool = False,
) -> bytes:
    """Build an engine and return its bytes.

    profiles: for every input with free sizes, the smallest, best and largest shape; several where the engine shall be
        quick at sizes far apart (a window and a whole slice, say): it takes the first that holds a shape.
    workspace: bytes of scratch memory a kernel may ask for.
    compute_capabilities: ``SM86`` and the like, with TensorRT for RTX only; none means this machine's GPU.
    timing_cache: file with how long kernels took in earlier builds; made, reused and extended. One of another GPU or
        release is begun anew; where it can't be read or written the build goes on without it.
    version_compatible: later releases of the same major version run the engine too; ``tensorrt`` only.
    hardware_compatible: every GPU from Ampere on runs the engine, somewhat slower; ``tensorrt`` only.

    Raises MedlightError with TensorRT's own words where the graph can't be parsed or built.
    """
    trt = find(packages)
    log = logger(trt)
    log.errors.clear()
    try:
        builder = trt.Builder(log)
    except Exception as error:  # tensorrt proper: no CUDA device
        raise MedlightError(f"{trt.__name__}: no engine can be built here: {said(log) or error}") from None
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(os.fspath(onnx)):
        raise MedlightError(f"{onnx}: TensorRT can't read the graph: {_parse_errors(parser) or said(log)}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default; it would move probabilities by 1e-3
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the report of layers
    _set_targets(trt, config, compute_capabilities)
    _set_compatible(trt, config, version_compatible, hardware_compatible)
    for profile in [profiles] if isinstance(profiles, Mapping) else profiles or [{}]:
        _add_profile(builder, network, config, profile, onnx)
    _read_timings(config, timing_cache)
    log.errors.clear()
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        reason = said(log) or "it gives no reason"
        mend = "; mend: allow a larger --workspace" if "workspace" in reason or "OutOfMemory" in reason else ""
        raise MedlightError(f"{onnx}: TensorRT can't build the engine: {reason}{mend}")
    _write_timings(config, timing_cache)
    return bytes(plan)


def _set_targets(trt: Any, config: Any, names: Sequence[str]) -> None:
    if not names:
        return
    if not is_rtx(trt):
        raise UsageError("compute capabilities can be named with tensorrt-rtx only; tensorrt builds for this GPU")
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        target = getattr(trt.ComputeCapability, name, None)
        if target is None or not config.set_compute_capability(target, index):
            known = ", ".join(n for n in dir(trt.ComputeCapability) if n.startswith("SM"))
            raise UsageError(f"TensorRT builds for no compute capability {name!r}; mend: one of {known}")


def _set_compatible(trt: Any, config: Any, version: bool, hardware: bool) -> None:
    if (version or hardware) and is_rtx(trt):
        what = "version-compatible" if version else "hardware-compatible"
        mend = "leave it out" if version else "name compute_capabilities"
        raise UsageError(f"{what} engines are made with tensorrt only, not with tensorrt-rtx; mend: {mend}")
    if version:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if hardware:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS


def _add_profile(builder: Any, network: Any, config: Any, profiles: Profiles, onnx: Path) -> None:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    free = [tensor for tensor in inputs if -1 in tuple(tensor.shape)]
    if not free:
        return
    profile = builder.create_optimization_profile()
    for tensor in free:
        if tensor.name not in profiles:
            raise UsageError(f"{onnx}: the input {tensor.name!r} has free sizes; give a profile for it")
        profile.set_shape(tensor.name, *profiles[tensor.name])
    if config.add_optimization_profile(profile) < 0:
        raise MedlightError(f"{onnx}: TensorRT refuses the profile {dict(profiles)}")


def _read_timings(config: Any, file: Path | None) -> None:
    """Hand earlier timings to the builder; a file that it does not take is as good as none."""
    if file is None:
        return
    try:
        known = file.read_bytes()
    except OSError:
        known = b""
    for content in (known, b""):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):  # False: not of another device
            return


def _write_timings(config: Any, file: Path | None) -> None:
    cache = config.get_timing_cache() if file is not None else None
    if cache is None or file is None:
        return
    with contextlib.suppress(OSError), replacing(file) as temporary:  # a home that can't be written to
        temporary.write_bytes(bytes(cache.serialize()))


def _parse_errors(parser: Any) -> str:
    found = [parser.get_error(index) for index in range(parser.num_errors)]
    return "; ".join(f"{e.node_operator()} {e.node_name()}: {e.desc()}" for e in found)
