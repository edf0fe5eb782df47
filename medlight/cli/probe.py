"""Imports packages and says how that went: the part of ``medlight doctor`` that may be slow, fail or crash.

Runs as a process of its own (``python -m medlight.cli.probe GROUP``) and prints a JSON object a line.
"""

from __future__ import annotations

import base64
import importlib
import importlib.util
import json
import sys
import warnings
from typing import Any

# Each group is a process. torchvision is last: where its build does not fit torch, others fail once it was tried.
GROUPS = {
    "train": ["torch", "torchio", "lightning", "torchvision"],
    "track": ["mlflow", "nibabel", "optuna"],
    "networks": ["monai"],
    "run": ["onnxruntime", "onnx", "openvino", "tensorrt", "tensorrt_rtx"],
}
# y = x + x on one float, ONNX opset 17: the smallest model that a provider must really run.
_MODEL = base64.b64decode("CAg6NQoOCgF4CgF4EgF5IgNBZGQSAWdaDwoBeBIKCggIARIECgIIAWIPCgF5EgoKCAgBEgQKAggBQgQKABAR")


def main(group: str) -> None:
    """Import the group's packages one by one, and look at what those that came can do."""
    looks = {"torch": _gpus, "mlflow": _tracking, "onnxruntime": _providers, "openvino": _openvino}
    for name in GROUPS[group]:
        found = _imported(name)
        _say({"import": name, **found})
        if name in looks and found["state"] == "ok":
            try:
                _say(looks[name]())
            except Exception as error:
                _say({"problem": f"{name}: {_line(error)}"})


def _say(found: dict[str, Any]) -> None:
    print(json.dumps(found), flush=True)


def _imported(name: str) -> dict[str, Any]:
    if importlib.util.find_spec(name) is None:
        return {"state": "absent"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(name)
    except BaseException as error:
        return {"state": "broken", "error": _line(error)}
    return {"state": "ok"}


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _gpus() -> dict[str, Any]:
    import torch

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        there = torch.cuda.is_available()
    found: dict[str, Any] = {"cuda_build": torch.version.cuda, "gpus": [], "mps": torch.backends.mps.is_available()}
    for index in range(torch.cuda.device_count() if there else 0):
        card = torch.cuda.get_device_properties(index)
        bf16 = card.major >= 8  # older ones only emulate it
        found["gpus"].append(
            {
                "name": card.name,
                "memory_gb": round(card.total_memory / 1e9, 1),
                "capability": f"{card.major}.{card.minor}",
                "precisions": ["fp32", "fp16", "bf16"] if bf16 else ["fp32", "fp16"],
            }
        )
    return found | ({"problem": " ".join(str(said[0].message).split())[:200]} if said and not there else {})


def _tracking() -> dict[str, Any]:
    from medlight.errors import MedlightError
    from medlight.tracking.connection import masked, sqlite_file, tracking_uri

    try:
        uri = tracking_uri()
    except MedlightError as error:
        return {"tracking": {"uri": "", "state": "broken", "error": str(error)}}
    file = sqlite_file(uri)
    if file is not None and not file.is_file():
        return {"tracking": {"uri": uri, "state": "none yet, made by the first fit"}}
    try:
        state = _answer(uri)
    except Exception as error:
        return {"tracking": {"uri": masked(uri), "state": "broken", "error": _line(error)}}
    return {"tracking": {"uri": masked(uri), "state": state}}


def _answer(uri: str) -> str:
    """What the store says when asked once, without MLflow's minutes of trying again."""
    if uri.startswith(("http://", "https://")):
        import urllib.request

        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=4):
            return "answers"
    import sqlalchemy

    # psycopg and SQLite both wait this long at most.
    engine = sqlalchemy.create_engine(uri, connect_args={"timeout" if "sqlite" in uri else "connect_timeout": 4})
    with engine.connect() as connection:
        runs = connection.execute(sqlalchemy.text("SELECT count(*) FROM runs")).scalar_one()
    return f"answers, {runs} runs"


def _providers() -> dict[str, Any]:
    import numpy as np
    import onnxruntime as ort

    ort.set_default_logger_severity(4)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    found = {}
    for name in ort.get_available_providers():
        if name == "AzureExecutionProvider":  # in every build; calls a server and runs nothing here
            continue
        try:
            session = ort.InferenceSession(_MODEL, options, providers=[name])
            (out,) = session.run(None, {"x": np.ones(1, np.float32)})
            found[name] = bool(out[0] == 2 and session.get_providers()[0] == name)
        except Exception:
            found[name] = False
    return {"providers": found}


def _openvino() -> dict[str, Any]:
    core = importlib.import_module("openvino").Core()
    return {"openvino_devices": list(core.available_devices)}


if __name__ == "__main__":
    main(sys.argv[1])
