"""Initial weights for a network, from a file that was handed in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medlight.config import nearest
from medlight.errors import MedlightError, UsageError
from medlight.tasks.inflate import INFLATIONS, Inflation, adapt
from medlight.tasks.weight_files import read_weights, sha256

KEY = "model.init_args.pretrained"
SETTINGS = ("weights", "least", "inflate", "sha256")
_NAMED = 3  # names in a message
_SOME = 0.1  # of the weights: with less, nothing is learnt from them


@dataclass(frozen=True)
class Report:
    """Which of a network's tensors came from a file, and which did not.

    loaded, adapted, missing: names in the network; missing ones, as an output layer of another size, keep their random
    start. unexpected: names in the file that the network has no use for. changes: what was done to an adapted tensor,
    or why one that is in the file too is missing.
    share: of the elements of the network's parameters, those that were loaded or adapted (0 to 1).
    sha256: of the file.
    """

    loaded: list[str] = field(default_factory=list)
    adapted: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    changes: dict[str, str] = field(default_factory=dict)
    share: float = 0.0
    sha256: str = ""

    def line(self) -> str:
        """Return the counts as one line."""
        counts = ", ".join(f"{len(getattr(self, n))} {n}" for n in ("loaded", "adapted", "missing", "unexpected"))
        return f"{counts} tensors: {self.share:.1%} of the network's weights (sha256 {self.sha256[:12]})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def check(spec: Any) -> dict[str, Any]:
    """Return what ``pretrained`` says with its defaults: weights, least (0.5), inflate (None), sha256 (None).

    Raises: UsageError where it is neither a file nor these settings.
    """
    given = {"weights": spec} if isinstance(spec, str) else spec
    if not isinstance(given, Mapping) or not isinstance(given.get("weights"), str):
        raise UsageError(f"{KEY}: write FILE, run:RUN_ID, package:NAME, a bundle, or {{weights: one of these, ...}}")
    for name in given:
        if name not in SETTINGS:
            raise UsageError(f"{KEY}.{name}: no such setting{nearest(name, SETTINGS) or ': ' + ', '.join(SETTINGS)}")
    whole = {"least": 0.5, "inflate": None, "sha256": None, **given}
    least = whole["least"]
    if isinstance(least, bool) or not isinstance(least, int | float) or not 0 <= least <= 1:
        raise UsageError(f"{KEY}.least: {least!r} is no share; write a number from 0 to 1")
    if whole["inflate"] not in (None, *INFLATIONS):
        raise UsageError(f"{KEY}.inflate: {whole['inflate']!r} is none of {', '.join(INFLATIONS)}, null")
    if whole["sha256"] is not None and not isinstance(whole["sha256"], str):
        raise UsageError(f"{KEY}.sha256: write the digest in quotes, or leave it out")
    return whole


def load_into(network: nn.Module, spec: str | Mapping[str, Any]) -> Report:
    """Load initial weights into a network, in place; nothing is changed where it is refused.

    spec: a file, or ``{weights: file, least, inflate, sha256}``. Tensors are matched by name; where all names of the
    file or of the network begin with a prefix that the other lacks, without it. The layers that read the image are
    adapted to its channels; kernels in 2D become ones in 3D as ``inflate`` says (``centre`` or ``average``).

    Raises: UsageError where the file is absent, MedlightError where it is damaged or not the one of ``sha256``, or
    where less than ``least`` of the network's weights would come of it.
    """
    settings = check(spec)
    file = Path(settings["weights"]).expanduser()
    if not file.is_file():
        raise UsageError(f"{KEY}: {file}: no such file of weights{_beside(file)}")
    digest = sha256(file)
    if settings["sha256"] not in (None, digest):
        raise MedlightError(
            f"{KEY}: {file} was altered since its digest was recorded ({settings['sha256'][:12]}, now {digest[:12]})"
        )
    try:
        weights = read_weights(file)
    except MedlightError as error:
        raise MedlightError(f"{KEY}: {error}") from error
    new, report = _fitted(network, weights, settings["inflate"], digest)
    if report.share < settings["least"] or not new:
        raise MedlightError(_too_little(file, report, settings, weights, network))
    learnt = {name for name, _ in network.named_parameters(remove_duplicate=False)}  # a buffer may be infinite: a mask
    broken = [name for name, value in new.items() if value.isnan().any() or (name in learnt and value.isinf().any())]
    if broken:
        raise MedlightError(
            f"{KEY}: {file}: holds weights that are no finite numbers ({', '.join(_several(broken))}); mend: name "
            "those of a fit that went well"
        )
    state = network.state_dict()
    with torch.no_grad():
        for name, value in new.items():
            state[name].copy_(value)
    return report


def _fitted(
    network: nn.Module, weights: Mapping[str, Tensor], how: Inflation | None, digest: str
) -> tuple[dict[str, Tensor], Report]:
    """Return the network's new tensors, and the report on them."""
    state = network.state_dict()
    names = _matched(state, weights)
    layers = {f"{name}.weight": layer for name, layer in network.named_modules(remove_duplicate=False)}
    image = _image_channels(layers, names, weights)
    report, new = Report(sha256=digest, unexpected=sorted(set(weights) - set(names.values()))), {}
    for name, old in state.items():
        found = weights.get(names.get(name, ""))
        if found is None:
            report.missing.append(name)
        elif found.shape == old.shape:
            new[name] = found
            report.loaded.append(name)
        else:
            reads_image = min(found.ndim, old.ndim) > 2 and (old.shape[1], found.shape[1]) == image
            made = adapt(layers[name], found, how, reads_image) if name in layers else None
            (report.missing if made is None else report.adapted).append(name)
            said = f"{_shape(found)} in the file, {_shape(old)} in the network"
            report.changes[name] = said + (f"; {how}" if made is not None and made.ndim > found.ndim else "")
            new |= {} if made is None else {name: made}
    return new, _with_share(report, network, set(new))


def _matched(state: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the file's name for each name of the network, under the prefix by which the most elements match."""

    def names(ours: str, theirs: str) -> dict[str, str]:
        found = ((ours + name[len(theirs) :], name) for name in weights if name.startswith(theirs))
        return {here: name for here, name in found if here in state}

    def elements(matched: Mapping[str, str]) -> int:
        return sum(state[here].numel() for here, name in matched.items() if _alike(state[here], weights[name]))

    candidates = [names("", "")]
    candidates += [names(prefix, "") for prefix in _prefixes(state)]
    candidates += [names("", prefix) for prefix in _prefixes(weights)]
    return max(candidates, key=elements)


def _alike(old: Tensor, found: Tensor) -> bool:
    """Whether two tensors are of one layer, but for the image's channels and a kernel's third axis."""
    if min(old.ndim, found.ndim) < 3:
        return old.shape == found.shape
    return old.shape[0] == found.shape[0] and old.shape[2:4] == found.shape[2:4]


def _prefixes(names: Mapping[str, Tensor]) -> list[str]:
    found = {name[: place + 1] for name in names for place, letter in enumerate(name) if letter == "."}
    return sorted(found, key=lambda prefix: (len(prefix), prefix))


def _image_channels(
    layers: Mapping[str, nn.Module], names: Mapping[str, str], weights: Mapping[str, Tensor]
) -> tuple[int, int]:
    """Input channels of the first convolution, in the network and in the file."""
    for here, layer in layers.items():
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and here in names:
            found = weights[names[here]]
            return layer.weight.shape[1], found.shape[1] if found.ndim > 2 else 0
    return 0, 0


def _with_share(report: Report, network: nn.Module, new: set[str]) -> Report:
    sizes = {name: p.numel() for name, p in network.named_parameters(remove_duplicate=False)}
    unique = {id(p): name for name, p in network.named_parameters(remove_duplicate=False) if name in new}
    came = sum(sizes[name] for name in unique.values())
    total = sum(p.numel() for p in network.parameters())
    return Report(**{**asdict(report), "share": came / total if total else 0.0})


def _too_little(
    file: Path, report: Report, settings: Mapping[str, Any], weights: Mapping[str, Tensor], network: nn.Module
) -> str:
    """Say what was not found, and why that may be."""
    flat = max((value.ndim for value in weights.values()), default=0) == 4
    deep = any(p.ndim == 5 for p in network.parameters())
    missing = list(_several(report.missing))
    other = next((f"; {name}: {report.changes[name]}" for name in report.missing if name in report.changes), "")
    mend = "name weights of this architecture" + (", or lower pretrained.least" if report.share >= _SOME else "")
    if flat and deep and settings["inflate"] is None:
        mend = "its kernels are 2D, so write pretrained.inflate: centre (or average)"
    return (
        f"{KEY}: {file}: only {report.share:.1%} of the weights of {type(network).__name__} are in it, less than "
        f"{settings['least']:.0%}; missing: {', '.join(missing)}{other}; mend: {mend}"
    )


def _beside(file: Path) -> str:
    return nearest(file.name, [entry.name for entry in file.parent.iterdir()]) if file.parent.is_dir() else ""


def _several(names: list[str]) -> Iterator[str]:
    yield from names[:_NAMED]
    if len(names) > _NAMED:
        yield f"and {len(names) - _NAMED} more"


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"
