"""Build a network from its import path; what the data decides is filled in."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping
from typing import Any

from torch import nn

from medlight import config
from medlight.errors import UsageError
from medlight.networks.plan import plan_dynunet

Signature = dict[str, Any]
DYNUNET = {"kernel_size", "strides", "upsample_kernel_size"}


def build(spec: Mapping[str, Any], signature: Signature, out_channels: int) -> nn.Module:
    """Return the network that a spec names, with what the spec leaves out filled in from the data.

    spec: ``{class_path, init_args}`` of a class, or of a function that returns a module.
    signature: the data module's signature: ``spatial_dims``, ``channels``, ``patch_size``, ``preparation``.
    out_channels: labels of a segmentation (background included) or classes.

    Filled under the names that MONAI's networks use, where the class has them: spatial_dims, in_channels,
    out_channels, n_input_channels, num_classes, img_size, input_image_size, in_shape, dropout_dim. ``pretrained`` is
    off unless asked for: initial weights are handed in, never looked up. DynUNet's kernels and strides are planned
    from the patch size. Raises UsageError where the class refuses its arguments.
    """
    call = config.import_class(spec["class_path"])
    names, _ = _arguments(call)
    written = dict(spec.get("init_args") or {})
    filled = {name: value for name, value in _given(signature, out_channels).items() if name in names}
    if names >= DYNUNET:
        filled |= _dynunet(signature, written)
    if "post_activation" in names and "classification" in names:  # ViT
        filled |= {"classification": True, "post_activation": "none"}
    try:
        network = config.instantiate({"class_path": spec["class_path"], "init_args": filled | written})
    except (ValueError, NotImplementedError, AssertionError) as error:
        raise UsageError(f"network {spec['class_path']}: {' '.join(str(error).split())}") from error
    if not isinstance(network, nn.Module):
        raise UsageError(f"network {spec['class_path']}: expected a torch module, got {type(network).__name__}")
    return network


def check(spec: Mapping[str, Any], key: str) -> None:
    """Raise UsageError where a network's spec names an unknown class or argument."""
    config.check_spec(spec, key)
    names, open_ended = _arguments(config.import_class(spec["class_path"]))
    for name in spec.get("init_args") or {}:
        if name not in names and not open_ended:
            near = config.nearest(name, names)
            raise UsageError(f"{key}.init_args.{name}: {spec['class_path']} has no argument {name!r}{near}")


def spatial_size(signature: Signature) -> list[int]:
    """Return the voxels along each spatial axis of what the network is trained on."""
    return [int(n) for n in signature["patch_size"]][: int(signature["spatial_dims"])]


def _arguments(call: Any) -> tuple[set[str], bool]:
    """Names that a call accepts; a function that passes ``**kwargs`` on is judged by the class that it returns."""
    names, open_ended = config.arguments(call)
    if open_ended and inspect.isfunction(call):
        try:
            returned = typing.get_type_hints(call).get("return")
        except (NameError, TypeError):
            returned = None
        if inspect.isclass(returned) and returned is not nn.Module:
            more, open_ended = config.arguments(returned)
            names = names | more
    return names, open_ended


def _given(signature: Signature, out_channels: int) -> dict[str, Any]:
    dims, channels, size = int(signature["spatial_dims"]), len(signature["channels"]), spatial_size(signature)
    return {
        "spatial_dims": dims,
        "in_channels": channels,
        "n_input_channels": channels,
        "out_channels": out_channels,
        "num_classes": out_channels,
        "img_size": size,
        "input_image_size": size,
        "in_shape": [channels, *size],
        "dropout_dim": dims,
        "pretrained": False,
    }


def _dynunet(signature: Signature, written: Mapping[str, Any]) -> dict[str, Any]:
    if "strides" in written:
        strides = written["strides"]
        return {"kernel_size": [3] * len(strides), "upsample_kernel_size": strides[1:]}
    spacing = (signature.get("preparation") or {}).get("spacing")
    depth = written.get("kernel_size") or written.get("filters")
    return plan_dynunet(spatial_size(signature), spacing, len(depth) if depth else None)
