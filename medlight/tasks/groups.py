"""Groups of parameters with learning rates of their own: by name, and by how deep a layer lies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from medlight import config
from medlight.errors import UsageError

Parameters = Mapping[str, nn.Parameter]
NETWORK = "network."


def check_groups(spec: Mapping[str, Any], key: str) -> None:
    """Raise UsageError where an optimiser's ``groups`` or ``layer_decay`` is not understood."""
    options = config.arguments(config.import_class(spec["class_path"], f"{key}.class_path"))[0] - {"params"}
    groups = spec.get("groups") or []
    if not isinstance(groups, list):
        raise UsageError(f"{key}.groups: write a list, as [{{match: 'network.encoder*', lr: 1e-4}}]")
    for index, group in enumerate(groups):
        here = f"{key}.groups[{index}]"
        if not isinstance(group, Mapping) or not isinstance(group.get("match"), str):
            raise UsageError(f"{here}: each group needs match, a pattern of parameter names")
        for name, value in group.items():
            if name not in options | {"match"}:
                raise UsageError(
                    f"{here}.{name}: {spec['class_path']} has no such setting{config.nearest(name, options)}"
                )
            if name == "lr" and not _number(value, 0, math.inf):
                raise UsageError(f"{here}.lr: {value!r} is no learning rate")
    if spec.get("layer_decay") is not None and not _number(spec["layer_decay"], 0, 1):
        raise UsageError(f"{key}.layer_decay: {spec['layer_decay']!r}; write a number above 0, at most 1")


def grouped(spec: Mapping[str, Any], parameters: Parameters, rate: float) -> list[dict[str, Any]]:
    """Return the parameters as torch's groups, each with a ``name`` and the settings of its own.

    spec: ``groups``, a list of ``{match, lr, ...}``: settings for the parameters whose names fit the pattern (``*``,
    ``?``); of several that fit, the last one counts. ``layer_decay``: the last layer of the network keeps its rate,
    each layer before it has this share of the next one's (Clark et al., "ELECTRA", ICLR 2020). A layer is a numbered
    block (``layer1.0``, ``blocks.3``), or what lies between two of them; they count in the order of the network.
    rate: the learning rate where a group writes none.

    Raises: UsageError where a pattern fits no parameter, or the network has no layers to tell apart.
    """
    written, decay = spec.get("groups") or [], spec.get("layer_decay")
    depths = _depths(parameters) if decay else {}
    last = max(depths.values(), default=0)
    if decay and not last:
        raise UsageError("layer_decay: the network has no numbered blocks that could be told apart; write groups")
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        index = max((i for i, group in enumerate(written) if fnmatchcase(name, group["match"])), default=-1)
        depth = depths.get(name, last)
        group = found.setdefault((index, depth), _group(written, index, depth, rate, decay, last))
        group["params"].append(parameter)
    for index, group in enumerate(written):
        if not any(fnmatchcase(name, group["match"]) for name in parameters):
            near = config.nearest(group["match"].rstrip("*."), _prefixes(parameters))
            raise UsageError(f"groups[{index}].match: no parameter is named like {group['match']!r}{near}")
    return [found[key] for key in sorted(found)]


def _group(
    written: list[Mapping[str, Any]], index: int, depth: int, rate: float, decay: float | None, last: int
) -> dict[str, Any]:
    own = dict(written[index]) if index >= 0 else {}
    parts = [own.pop("match").replace("*", "").replace("?", "").strip("./") or "all"] if own else []
    parts += [f"layer{depth:02d}"] if decay else []
    scale = decay ** (last - depth) if decay else 1.0
    return {**own, "params": [], "name": ".".join(parts) or "rest", "lr": float(own.get("lr", rate)) * scale}


def _depths(parameters: Parameters) -> dict[str, int]:
    """How many layers of the network come before each of its parameters."""
    depths: dict[str, int] = {}
    block: str | None = None
    depth = -1
    for name in parameters:
        if name.startswith(NETWORK):
            parts = name.split(".")
            number = next((place for place, part in enumerate(parts) if part.isdecimal()), -1)
            if (here := ".".join(parts[: number + 1])) != block:
                block, depth = here, depth + 1
            depths[name] = depth
    return depths


def _prefixes(names: Parameters) -> set[str]:
    return {".".join(name.split(".")[:count]) for name in names for count in range(1, name.count(".") + 2)}


def _number(value: Any, above: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and above < value <= most and value < math.inf
