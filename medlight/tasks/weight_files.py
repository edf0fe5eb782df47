"""Files of weights, read without running any code that they hold."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medlight.errors import MedlightError, UsageError

SUFFIXES = (".ckpt", ".pth", ".pt", ".safetensors")
_NESTED = ("state_dict", "model_state_dict", "network_weights", "model", "state")
_MEASURED = ("teacher.module.", "network.")
_WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_weights(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name, on the CPU.

    Of a medlight checkpoint only those of the network that it was measured by: the teacher, where there is one, else
    the network's own (the averaged ones, where Lightning averaged them: it writes those as ``state_dict``). What a
    pre-training did not train (a decoder, an output layer) is left out. Of others the state dict, however it is nested
    or wrapped. Pickles are read with ``weights_only=True``.

    Raises: UsageError where there is no such file, MedlightError where it holds no weights.
    """
    if not file.is_file():
        raise UsageError(f"{file}: no such file of weights")
    content = _content(file)
    medlight = content["medlight"] if isinstance(content, Mapping) and "medlight" in content else None
    tensors = {name: value for name, value in _state(content).items() if isinstance(value, Tensor)}
    if medlight is not None:
        tensors = next(filter(None, (_below(prefix, tensors) for prefix in _MEASURED)), {})
        random = {_layer(name) for name in medlight.get("untrained", ())}  # a norm's statistics go with its weight
        tensors = {name: value for name, value in tensors.items() if _layer(name) not in random}
    if not tensors:
        raise MedlightError(f"{file}: holds no weights; give a checkpoint or a state dict ({', '.join(SUFFIXES)})")
    return _unwrapped(tensors)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def _layer(name: str) -> str:
    """The module that a tensor belongs to."""
    return name.rpartition(".")[0]


def _content(file: Path) -> Any:
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes of any kind make the readers fail in any way
        raise MedlightError(
            f"{file}: no weights that can be read without running code; give a state dict saved with torch or "
            f"safetensors ({', '.join(SUFFIXES)})"
        ) from error


def _state(content: Any) -> dict[str, Any]:
    """Go down to the mapping that holds the tensors."""
    while isinstance(content, Mapping):
        inner = next((content[name] for name in _NESTED if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            return {str(name): value for name, value in content.items()}
        content = inner
    return {}


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if all(name.startswith(wrapper) for name in tensors):
            return _unwrapped({name[len(wrapper) :]: value for name, value in tensors.items()})
    return tensors
