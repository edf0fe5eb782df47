"""What the code asks of TensorRT's Python bindings is there, in every release that it is written for.

``tensorrt_api.json`` holds the names that the real bindings have (the wheels ``tensorrt_cu12_bindings`` 10.12 and
``tensorrt_cu13_bindings`` 10.16 and 11.4, imported over empty libraries: the true ones can't be had without NVIDIA's
index), so that a name that one of them lacks is found without a GPU.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import medlight.deploy.tensorrt

KNOWN = json.loads((Path(__file__).parent / "tensorrt_api.json").read_text())
SOURCES = sorted(Path(medlight.deploy.tensorrt.__file__).parent.glob("*.py"))
CLASSES = {  # what the names in the code stand for
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "cache": "ITimingCache",
    "inspector": "EngineInspector",
    "tensor": "ITensor",
    "e": "ParserError",
    "self._runtime": "Runtime",
    "self._engine": "ICudaEngine",
    "self._context": "IExecutionContext",
}
NOT_TENSORRT = {"tensor.to", "cache.mkdir"}  # torch's, a path's
RTX_ONLY = {"ComputeCapability", "num_compute_capabilities", "set_compute_capability"}


def asked() -> Iterator[tuple[str, str]]:
    """Yield (class, attribute) for each use in the code, and ("", name) for those of the module itself."""
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            if not isinstance(node, ast.Attribute):
                continue
            owner = ast.unparse(node.value)
            if node.attr.startswith("__") or owner.endswith("Severity"):
                continue
            if owner in ("trt", "self._trt"):
                yield "", node.attr
            elif owner.startswith(("trt.", "self._trt.")):
                yield owner.split(".")[-1], node.attr
            elif owner in CLASSES and f"{owner}.{node.attr}" not in NOT_TENSORRT:
                yield CLASSES[owner], node.attr


@pytest.mark.parametrize("release", KNOWN)
def test_every_name_is_there(release: str) -> None:
    known = KNOWN[release]
    wanted = {(owner, name) for owner, name in asked() if "rtx" in release or not {owner, name} & RTX_ONLY}
    missing = [(o, n) for o, n in wanted if n not in (known.get(o, ()) if o else {*known, *known["values"]})]
    assert not missing


def test_the_names_are_found_at_all() -> None:
    found = set(asked())
    assert ("IBuilderConfig", "set_timing_cache") in found
    assert ("IExecutionContext", "execute_async_v3") in found
    assert ("BuilderFlag", "VERSION_COMPATIBLE") in found
    assert len(found) > 40


def test_the_installed_package_has_what_is_written_down() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    missing = [(owner, name) for owner, name in asked() if not hasattr(getattr(trt, owner) if owner else trt, name)]
    assert not missing
