"""What each network supports when it leaves torch: writes docs/networks.md and results/networks.json.

    python benchmarks/networks.py [--only NAME ...]

Every network of `medlight.deploy.zoo`, small, with random weights, is exported and run with noise, one thread:

free sizes          axes of the input that may have another size, proved by running the file at a second one
onnxruntime         largest difference of a probability from torch, float32
openvino            the same
fp16, int8          the same in onnxruntime; INT8 calibrated on noise, so a bound rather than a figure of a trained one
engine              whether TensorRT for RTX builds one for SM86, SM89 and SM120 from the float32, float16, INT8 graph
export s            seconds of the export, its checks included
ms                  milliseconds of one window: torch, onnxruntime, openvino; the best of five
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medlight.deploy import tensorrt
from medlight.deploy.half import to_fp16
from medlight.deploy.onnx_export import export_onnx
from medlight.deploy.quantise import quantise
from medlight.deploy.runtime.session import OnnxSession, OpenVinoSession
from medlight.deploy.zoo import ZOO, Example
from medlight.errors import MedlightError

ROOT = Path(__file__).resolve().parents[1]
TARGETS = ("SM86", "SM89", "SM120")
COLUMNS = (
    *("network", "exporter", "free sizes", "onnxruntime", "openvino", "fp16", "int8", "engine fp32, fp16, int8"),
    *("export s", "ms torch, onnxruntime, openvino"),
)
HEAD = f"""\
# Networks that leave torch

What each network supports when it is exported, found by doing it. Small instances with random weights, so times are
for comparison along a row; parity of a trained network is measured by `medlight export` on its own cases. Written by
`python benchmarks/networks.py`, one thread.

| {" | ".join(COLUMNS)} |
|{"---|" * len(COLUMNS)}
"""
NOTES = """
*Free sizes*: axes of the input that may have another size, each run at a second one; spatial ones in steps of what the
strides divide. Where a spatial size is fixed the predictor's windows have just that size, so whole scans of any size
can be predicted all the same. *onnxruntime, openvino, fp16, int8*: largest difference of a probability from torch's.
*engine*: built by TensorRT for RTX for SM86, SM89 and SM120 on a machine without a GPU; none was run.
*ms*: with one thread torch does not take oneDNN's convolutions for windows this small, so its times say little of
larger ones; README.md has those of a 96^3 window.
"""


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(ZOO), metavar="NAME")
    names = parser.parse_args().only
    torch.set_num_threads(1)
    file = ROOT / "benchmarks" / "results" / "networks.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = measure(ZOO[name], Path(folder))
        print(name, json.dumps(found[name]), flush=True)
        file.write_text(json.dumps({key: found[key] for key in ZOO if key in found}, indent=1) + "\n")
    rows = [line(name, found[name]) for name in ZOO if name in found]
    (ROOT / "docs" / "networks.md").write_text(HEAD + "\n".join(rows) + "\n" + NOTES)


def measure(example: Example, folder: Path) -> dict[str, Any]:
    """Export a network and run all that runs here."""
    module, graph = example.module(), folder / "model.onnx"
    start = time.perf_counter()
    made = export_onnx(module, len(example.channels), example.window, graph)
    seconds = time.perf_counter() - start
    generator = torch.Generator().manual_seed(7)
    images = [torch.randn(1, len(example.channels), *example.window, generator=generator) for _ in range(4)]
    with torch.no_grad():
        expected = [module(image).numpy() for image in images]
    arrays = [image.numpy() for image in images]
    half, int8 = folder / "half.onnx", folder / "int8.onnx"
    to_fp16(graph, half, arrays)
    quantise(graph, int8, arrays)
    runs: dict[str, Callable[[Any], Any]] = {
        "onnxruntime": OnnxSession(graph, 1),
        "openvino": OpenVinoSession(graph, "fp32", 1),
        "fp16": OnnxSession(half, 1),
        "int8": OnnxSession(int8, 1),
    }
    apart = {
        name: max(float(np.abs(run(a) - e).max()) for a, e in zip(arrays, expected, strict=True))
        for name, run in runs.items()
    }
    with torch.inference_mode():
        times = {"torch": best(module, images[0])}
    times |= {name: best(runs[name], arrays[0]) for name in ("onnxruntime", "openvino")}
    engines = {name: built(path, example) for name, path in (("fp32", graph), ("fp16", half), ("int8", int8))}
    return {
        "exporter": made.exporter,
        "free": made.dynamic_axes,
        "multiple": made.size_multiple,
        "difference": apart,
        "engine": engines,
        "export_s": seconds,
        "ms": times,
    }


def best(run: Callable[[Any], Any], image: Any) -> float:
    """Return the shortest of five runs in milliseconds."""
    run(image)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        run(image)
        times.append(1000 * (time.perf_counter() - start))
    return min(times)


def built(graph: Path, example: Example) -> str:
    """Return ``yes``, or why there is no engine."""
    shape = (1, len(example.channels), *example.window)
    try:
        tensorrt.build(
            graph, {"image": (shape, shape, shape)}, packages=("tensorrt_rtx",), compute_capabilities=TARGETS
        )
    except MedlightError as error:
        return str(error)
    return "yes"


def line(name: str, found: dict[str, Any]) -> str:
    """Return a network's row."""
    free = ", ".join(found["free"]) + (f" (by {found['multiple']})" if found["multiple"] > 1 else "")
    apart = [f"{found['difference'][key]:.0e}" for key in ("onnxruntime", "openvino", "fp16", "int8")]
    engines = ", ".join("yes" if found["engine"][key] == "yes" else "no" for key in ("fp32", "fp16", "int8"))
    times = ", ".join(f"{found['ms'][key]:.1f}" for key in ("torch", "onnxruntime", "openvino"))
    row = [name, found["exporter"], free, *apart, engines, f"{found['export_s']:.0f}", times]
    return f"| {' | '.join(row)} |"


if __name__ == "__main__":
    main()
