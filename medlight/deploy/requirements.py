"""What a machine that only predicts has to install beside medlight itself."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence

from medlight.deploy.bundle import Model

FILE = "requirements.txt"
_ALWAYS = (
    *("numpy", "scipy", "nibabel", "pydicom", "highdicom", "pillow", "pyyaml", "safetensors", "rich", "psutil"),
    *("python-gdcm", "pylibjpeg", "pylibjpeg-openjpeg", "pylibjpeg-rle", "pyjpegls"),
)
_HEAD = """\
# What this bundle needs to predict, with no torch:
#   pip install -r requirements.txt && pip install --no-deps medlight
#   medlight predict THIS_FOLDER SCANS OUT
"""


def requirements(models: Sequence[Model]) -> str:
    """Return the lines of a bundle's ``requirements.txt``: the versions that it was made and compared with.

    Of the runtimes, those on the CPU that the bundle has models for; torch and TensorRT are left to the machine.
    """
    runtimes = [name for name in ("onnxruntime", "openvino") if any(model.runtime == name for model in models)]
    always, either = ([f"{n}=={v}" for n in names if (v := _version(n))] for names in (_ALWAYS, runtimes))
    choice = ["# either of these is enough:"] if len(either) > 1 else []
    return _HEAD + "\n".join([*always, *choice, *either]) + "\n"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None  # onnxruntime-gpu stands in its place: the machine that predicts has its own choice
