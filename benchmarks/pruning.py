"""What pruning, INT8 and a runtime each take off a trained network's window, and all three together.

    medlight export RUN whole --to onnx,openvino --precision fp32,int8
    medlight export RUN pruned --to onnx,openvino --precision fp32,int8 --prune 0.5
    python benchmarks/pruning.py CHECKPOINT PRUNED_CHECKPOINT whole pruned [--rounds 11] [--threads 1] [--out FILE.json]

The checkpoints are the best.ckpt of the run and of the one that `--prune` fitted; the first, eager and in float32, is
the unit. Arms take turns in one process, in another order each round; a figure is the median over rounds of the round's
ratio. torch stands beside the runtimes, whole and pruned: in bf16, channels-last, and compiled with its weights frozen.
Targets for a residual-encoder U-Net pruned by 0.5: each float32 runtime at most 0.45 of itself before, all three
together at most 0.12 of eager torch.

Time does not depend on the weights: `by_width` is the same network untrained, with 16 channels at full resolution (the
hippocampus study's) and with 32 (nnU-Net's), pruned by 0.5.
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
from monai.networks.nets import DynUNet

from medlight import tasks
from medlight.deploy.bundle import Bundle
from medlight.deploy.onnx_export import export_onnx
from medlight.deploy.runtime.session import OnnxSession, OpenVinoSession, open_session
from medlight.networks.prune import prune
from medlight.tasks.deployable import Deployable
from medlight.tasks.exact_norm import write_out_norms


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("pruned_checkpoint", type=Path)
    parser.add_argument("whole", type=Path)
    parser.add_argument("pruned", type=Path)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    bundles = {name: Bundle.load(getattr(args, name)) for name in ("whole", "pruned")}
    whole = bundles["whole"]
    image = torch.randn(1, len(whole.data["channels"]), *whole.window["size"])
    arms: dict[str, Callable[[], Any]] = {}
    for name, bundle in bundles.items():
        checkpoint = args.checkpoint if name == "whole" else args.pruned_checkpoint
        arms |= in_torch(name, tasks.load(checkpoint).deployable().float().eval(), image)
        for model in bundle.models:
            session = open_session(bundle, model, args.threads)
            arms[f"{name} {model.name}"] = lambda session=session: session(image.numpy())
    ratios = measured(arms, args.rounds)
    runtimes = [model.name for model in whole.models]
    found = {
        "command": " ".join(["python", *sys.argv]),
        "rounds": args.rounds,
        "threads": args.threads,
        "network": {name: bundle.network for name, bundle in bundles.items()},
        "dice": {name: dice(bundle) for name, bundle in bundles.items()},
        "of_eager": ratios,
        "fastest_torch": {n: min(v for key, v in ratios.items() if key.startswith(f"{n} torch")) for n in bundles},
        "pruned_of_whole": {name: ratios[f"pruned {name}"] / ratios[f"whole {name}"] for name in runtimes},
        "pruned_of_whole_by_width": {width: by_width(width, args) for width in (16, 32)},
        "all_three_of_eager": min(ratios[f"pruned {name}"] for name in runtimes if name.endswith("int8")),
    }
    text = json.dumps(found, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


def in_torch(name: str, network: Any, image: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """Return runs of the network in torch."""
    from torch._inductor import config

    config.freezing = True
    last = copy.deepcopy(network).to(memory_format=torch.channels_last_3d)
    laid = image.contiguous(memory_format=torch.channels_last_3d)
    compiled = [torch.compile(copy.deepcopy(network)) for _ in range(2)]

    def run(module: Any, given: torch.Tensor, half: bool) -> Any:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            return module(given)

    return {
        f"{name} torch eager fp32": lambda: run(network, image, False),
        f"{name} torch bf16": lambda: run(network, image, True),
        f"{name} torch bf16 channels-last": lambda: run(last, laid, True),
        f"{name} torch compiled": lambda: run(compiled[0], image, False),
        f"{name} torch compiled bf16": lambda: run(compiled[1], image, True),
    }


def by_width(width: int, args: argparse.Namespace) -> dict[str, float]:
    """Return what each runtime takes for an untrained residual-encoder U-Net after pruning, as a share of before."""
    sides, image = {"kernel_size": [3] * 4, "strides": [1, 2, 2, 2]}, torch.randn(1, 1, 40, 56, 40)
    arms: dict[str, Callable[[], Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("whole", "pruned"):
            filters = [width * 2**level for level in range(4)]
            network = DynUNet(3, 1, 3, **sides, upsample_kernel_size=[2] * 3, filters=filters, res_block=True)
            if name == "pruned":
                prune(network, image, 0.5, outputs=3)
            leaving = Deployable(network, "softmax", 3).float().eval()
            write_out_norms(leaving)
            graph = Path(folder) / f"{name}.onnx"
            export_onnx(leaving, 1, [40, 56, 40], graph)
            sessions = OnnxSession(graph, args.threads), OpenVinoSession(graph, "fp32", args.threads)
            for runtime, session in zip(("onnxruntime-fp32", "openvino-fp32"), sessions, strict=True):
                arms[f"{name} {runtime}"] = lambda session=session: session(image.numpy())
        return {
            runtime: measured({key: arms[key] for key in (f"whole {runtime}", f"pruned {runtime}")}, args.rounds)[
                f"pruned {runtime}"
            ]
            for runtime in ("onnxruntime-fp32", "openvino-fp32")
        }


def dice(bundle: Bundle) -> dict[str, Any]:
    """Return each model's mean Dice over the validation cases that its parity was measured on, and torch's."""
    of_models = {bundle.models[0].name: bundle.parity, **bundle.parity.get("models", {})}
    return {"torch": bundle.parity["dice"]["torch"], **{n: f["dice"]["bundle"] for n, f in of_models.items()}}


def measured(arms: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the median over rounds of each arm's time as a share of the first's."""
    for run in arms.values():
        run()
        run()
    order, unit = list(arms), next(iter(arms))
    found: list[dict[str, float]] = []
    for number in range(rounds):
        random.Random(number).shuffle(order)
        times = {}
        for name in order:
            start = time.perf_counter()
            arms[name]()
            times[name] = time.perf_counter() - start
        found.append(times)
    return {name: statistics.median(times[name] / times[unit] for times in found) for name in arms}


if __name__ == "__main__":
    main()
