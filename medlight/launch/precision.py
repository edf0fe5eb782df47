"""Choose the precision and memory layout that are fast and safe on this device, for one network."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from medlight.networks import heads
from medlight.tasks.base import Task

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
Variant = tuple[Precision, bool]

BUDGET_S = 1.0
MARGIN = 1.1
ROUNDS = 3
TOO_LONG_S = 10.0


@dataclass(frozen=True)
class Choice:
    """``precision`` as Lightning names it, memory layout, and one line that says why."""

    precision: Precision
    channels_last: bool
    reason: str


def choose(task: Task, sample_shape: Sequence[int], accelerator: str = "auto") -> Choice:
    """Return what trains this task's network fastest without risk.

    task: knows its data (``data`` was given or taken). A network of its own is built for the probe: neither the task
        nor any random state is changed.
    sample_shape: (B, C, I, J[, K]) of a training batch.
    accelerator: "cpu", "cuda" or "gpu", "auto" or another that Lightning knows.

    On a CPU forward and backward passes of the network itself are timed for about a second, the variants taking turns;
    fp32 with contiguous memory is left only where another is at least 10 % faster (bf16 on a CPU without matrix units
    is often slower). On CUDA the mixed precision is given by the device (bf16 where it computes that, else fp16 with
    loss scaling) and the memory layout is timed. Other accelerators keep fp32.
    """
    device = _device(accelerator)
    if device is None:
        return Choice("32-true", False, f"{accelerator}: fp32 is the safe choice")
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        network = task.build_network()
        image = torch.randn(*sample_shape)
    if device.type == "cuda":
        mixed: Precision = "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
        variants: list[Variant] = [(mixed, False), (mixed, True)]
    else:
        variants = [("32-true", False), ("32-true", True), ("bf16-mixed", False), ("bf16-mixed", True)]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        return pick(time_variants(network.to(device).train(), image.to(device), variants), device.type)


def pick(seconds: dict[Variant, float], device: str) -> Choice:
    """Return the fastest variant where it beats the first by the margin, else the first."""
    first = next(iter(seconds))
    best = min(seconds, key=lambda variant: seconds[variant])
    if seconds[first] < MARGIN * seconds[best]:
        best = first
    timed = ", ".join(f"{_name(variant)} {1000 * took:.1f} ms" for variant, took in seconds.items())
    return Choice(*best, reason=f"{device}: {timed} a step{'' if len(seconds) > 1 else ', too long to compare'}")


def time_variants(network: nn.Module, image: torch.Tensor, variants: Sequence[Variant]) -> dict[Variant, float]:
    """Return the median seconds of a forward and backward pass of each variant, measured in alternating rounds.

    A first pass of each is only counted where it takes so long that a second would cost more than it tells; a variant
    whose first pass takes three times as long as the first variant's is out. A step that takes long is measured on
    one sample of the batch; if even that takes over `TOO_LONG_S`, the first variant is kept unmeasured.
    """
    layouts = {last: _laid_out(network, last, image.ndim) for last in dict.fromkeys(last for _, last in variants)}
    image = _affordable(network, image, variants[0][0])
    runs = {v: (layouts[v[1]][0], image.contiguous(memory_format=layouts[v[1]][1])) for v in variants}
    first = time_step(*runs[variants[0]], variants[0][0])
    if first > TOO_LONG_S:
        return {variants[0]: first}
    warm = {variants[0]: first} | {v: time_step(*runs[v], v[0]) for v in variants[1:]}
    kept = [variant for variant in variants if warm[variant] <= 3 * first]
    took: dict[Variant, list[float]] = {variant: [] for variant in kept}
    end = time.perf_counter() + BUDGET_S
    rounds = ROUNDS if sum(warm.values()) < BUDGET_S else 1
    while len(took[kept[0]]) < rounds or time.perf_counter() < end:
        for variant in kept:
            took[variant].append(time_step(*runs[variant], variant[0]))
    return {variant: statistics.median(took.get(variant) or [warm[variant]]) for variant in variants}


def _affordable(network: nn.Module, image: torch.Tensor, precision: Precision) -> torch.Tensor:
    """Return the batch, or one sample of it where a step takes long (two where statistics are taken over the batch)."""
    fewest = 2 if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()) else 1
    if len(image) <= fewest:
        return image
    few = image[:fewest]
    time_step(network, few, precision)
    expected = time_step(network, few, precision) * len(image) / fewest
    return few if expected > BUDGET_S / 8 else image


def time_step(network: nn.Module, image: torch.Tensor, precision: Precision) -> float:
    """Return the seconds of one forward and backward pass."""
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    _wait(image)
    begin = time.perf_counter()
    with torch.autocast(image.device.type, dtype=dtype) if dtype else nullcontext():
        output = network(image)
    loss = torch.stack([head.float().square().mean() for head in heads(network, output, image.ndim - 2)]).sum()
    loss.backward()
    _wait(image)
    took = time.perf_counter() - begin
    network.zero_grad(set_to_none=True)
    return took


def _laid_out(network: nn.Module, channels_last: bool, dims: int) -> tuple[nn.Module, torch.memory_format]:
    if not channels_last:
        return network, torch.contiguous_format
    layout = torch.channels_last if dims == 4 else torch.channels_last_3d
    return copy.deepcopy(network).to(memory_format=layout), layout  # type: ignore[call-overload]


def _device(accelerator: str) -> torch.device | None:
    """The device to time on; None for another kind, and for one that is not there (the Trainer refuses it)."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("cpu") if accelerator in ("auto", "cpu") else None


def _wait(image: torch.Tensor) -> None:
    if image.device.type == "cuda":
        torch.cuda.synchronize(image.device)


def _name(variant: Variant) -> str:
    return variant[0] + (" channels-last" if variant[1] else "")
