"""What a window costs in each runtime and precision, as a share of torch's eager float32.

    python benchmarks/deploy.py [--rounds 7] [--threads 1] [--out FILE.json]

Networks: MONAI's UNet in 3D (16 to 256 channels, two residual units a stage, instance norm) on 96^3, ResNet-18 in 2D on
224^2; random weights, which take as long as trained ones. Arms take turns in one process, in another order each round;
a figure is the median over rounds of the round's ratio to torch eager float32.

torch_*           eager; bfloat16 by autocast; the same channels-last; compiled with frozen weights
onnxruntime_*, openvino_*  the sessions of medlight's predictor
fastest_fp32, fastest_int8  the best of those sessions in float32, and with INT8 besides: what the predictor settles on

Targets: fastest_fp32 at most 0.40 and fastest_int8 at most 0.25 for the UNet, fastest_int8 at most 0.20 for ResNet-18.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai.networks import nets
from torch import nn

from medlight.deploy.onnx_export import export_onnx
from medlight.deploy.quantise import quantise
from medlight.deploy.runtime.session import OnnxSession, OpenVinoSession
from medlight.tasks.deployable import Deployable
from medlight.tasks.exact_norm import write_out_norms

Arm = Callable[[], Any]
SESSIONS = ("onnxruntime_fp32", "openvino_fp32", "openvino_bf16", "onnxruntime_int8", "openvino_int8")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    networks: dict[str, tuple[nn.Module, list[int]]] = {
        "UNet 3D 96^3": (
            nets.UNet(3, 1, 3, channels=[16, 32, 64, 128, 256], strides=[2] * 4, num_res_units=2),
            [96, 96, 96],
        ),
        "ResNet-18 2D 224^2": (nets.resnet18(spatial_dims=2, n_input_channels=1, num_classes=3), [224, 224]),
    }
    found = {name: measured(network, window, args) for name, (network, window) in networks.items()}
    command = " ".join(["python", *sys.argv])
    figures = {"command": command, "threads": args.threads, "rounds": args.rounds, "networks": found}
    text = json.dumps(figures, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


def measured(network: nn.Module, window: list[int], args: argparse.Namespace) -> dict[str, Any]:
    """Return the ratios of every arm to eager float32, and its milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        arms = arms_of(network, window, args.threads, Path(folder))
        for run in arms.values():
            run()
            run()
        rounds: list[dict[str, float]] = []
        order = list(arms)
        for number in range(args.rounds):
            random.Random(number).shuffle(order)
            rounds.append({name: seconds(arms[name]) for name in order})
    eager = [one["torch_eager_fp32"] for one in rounds]
    ratio = {
        name: statistics.median(one[name] / unit for one, unit in zip(rounds, eager, strict=True)) for name in arms
    }
    ratio["fastest_fp32"] = min(ratio[name] for name in SESSIONS if name.endswith("fp32"))
    ratio["fastest_int8"] = min(ratio[name] for name in SESSIONS)
    ratio["fastest_torch"] = min(value for name, value in ratio.items() if name.startswith("torch"))
    times = {name: 1000 * statistics.median(one[name] for one in rounds) for name in arms}
    return {"ratio": ratio, "ms": times}


def arms_of(network: nn.Module, window: list[int], threads: int, folder: Path) -> dict[str, Arm]:
    """Return what is timed, by name."""
    dims = len(window)
    image = torch.randn(1, 1, *window)
    array = image.numpy()
    eager = Deployable(network, "softmax", dims).float().eval()
    last = torch.channels_last if dims == 2 else torch.channels_last_3d
    arms: dict[str, Arm] = {
        "torch_eager_fp32": in_torch(eager, image),
        "torch_bf16": in_torch(eager, image, half=True),
    }
    laid = copy.deepcopy(eager).to(memory_format=last)  # type: ignore[call-overload]
    arms["torch_bf16_channels_last"] = in_torch(laid, image.contiguous(memory_format=last), half=True)
    from torch._inductor import config

    config.freezing = True
    arms["torch_compiled_frozen"] = in_torch(torch.compile(copy.deepcopy(eager)), image)
    arms["torch_compiled_frozen_bf16"] = in_torch(torch.compile(copy.deepcopy(eager)), image, half=True)
    leaving = copy.deepcopy(eager)
    write_out_norms(leaving)
    graph, int8 = folder / "model.onnx", folder / "model_int8.onnx"
    export_onnx(leaving, 1, window, graph)
    quantise(graph, int8, [torch.randn(1, 1, *window).numpy() for _ in range(4)])
    sessions = {
        "onnxruntime_fp32": OnnxSession(graph, threads),
        "onnxruntime_int8": OnnxSession(int8, threads),
        "openvino_fp32": OpenVinoSession(graph, "fp32", threads),
        "openvino_bf16": OpenVinoSession(graph, "bf16", threads),
        "openvino_int8": OpenVinoSession(int8, "int8", threads),
    }
    return arms | {name: lambda session=session: session(array) for name, session in sessions.items()}


def in_torch(module: Any, image: torch.Tensor, half: bool = False) -> Arm:
    """Return a run of a module."""

    def run() -> Any:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            return module(image)

    return run


def seconds(run: Arm) -> float:
    """Time one run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
