"""What is no longer as it was when a run was made: code, packages, machine, data."""

from __future__ import annotations

import importlib.metadata
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import medlight
from medlight.config import Config, flatten
from medlight.tracking import manifest

# Those that compute: of the images, the network, the loss, the metrics. Others are counted.
_COMPUTING = (
    *("torch", "lightning", "pytorch-lightning", "torchmetrics", "monai", "torchio", "einops", "triton", "mkl"),
    *("numpy", "scipy", "scikit-learn", "SimpleITK", "nibabel", "safetensors", "pydicom", "pylibjpeg"),
    *("nvidia-cudnn-cu12", "nvidia-cublas-cu12"),
)
_SHOWN = 3  # names in a note


@dataclass(frozen=True)
class Difference:
    """One thing that differs; ``matters``: it can change a result, so that a rerun stops there."""

    what: str
    recorded: str
    now: str
    matters: bool = True
    note: str = ""


def of_code(recorded: Mapping[str, Any], diff: str, config: Config | None = None) -> list[Difference]:
    """Compare medlight's modules, the user's own, and the repository of the run's start with what is there now.

    recorded: a run's manifest. diff: its uncommitted changes. config: its configuration. A commit that changed no
    Python file can't matter, nor can one whose Python files are medlight's own, all of which compute what they did.
    """
    found = []
    known = recorded.get("code")
    if known:
        changed = manifest.changed_code(known, manifest.class_paths(config or {}))
        changed += [name for name in manifest.running_otherwise(known, config or {}) if name not in changed]
        for what, own in (("medlight", False), ("own code", True)):
            names = [name for name in changed if _is_own(name) is own]
            count = sum(_is_own(name) is own for name in known)
            if names:
                found.append(Difference(what, f"{count} modules", f"{len(names)} changed", note=_few(names)))
    elif recorded["environment"]["code_digest"] != manifest.code_digest():
        then = recorded["environment"]["code_digest"]
        found.append(Difference("medlight", f"code {then[:10]}", f"code {manifest.code_digest()[:10]}"))
    return found + _of_repository(recorded["environment"].get("git"), diff, own_is_known=bool(known))


def _is_own(module: str) -> bool:
    return module.split(".")[0] != "medlight"


def _of_repository(then: Mapping[str, Any] | None, diff: str, own_is_known: bool) -> list[Difference]:
    now = manifest.git_state()
    if then is None and now is None:
        return []
    if then is None or now is None:
        note = "the code of that repository can't be compared here" if then else ""
        return [Difference("commit", _commit(then), _commit(now), bool(then), note)]
    files = changed_files(then["commit"], diff)
    if files is None:
        return [Difference("commit", _commit(then), _commit(now), note="the recorded commit is not in this repository")]
    own = _folder_here() if own_is_known else None
    others = [name for name in files if own is None or not name.startswith(own)]
    found = []
    if then["commit"] != now["commit"]:
        found.append(Difference("commit", _commit(then), _commit(now), bool(others), _about(files, others)))
    if sections(diff) != sections(manifest.uncommitted_diff()):
        before, after = (f"{len(sections(text))} files" for text in (diff, manifest.uncommitted_diff()))
        found.append(Difference("uncommitted changes", before, after, bool(others), _about(files, others)))
    return found


def changed_files(commit: str, diff: str) -> list[str] | None:
    """Return the Python files that differ between a commit with a diff on it and what is there now.

    None where the commit is not known here.
    """
    now = manifest.diff_since(commit)
    if now is None:
        return None
    old, new = sections(diff), sections(now)
    return sorted(name for name in {*old, *new} if name.endswith(".py") and old.get(name) != new.get(name))


def sections(diff: str) -> dict[str, str]:
    """Return a diff's text by file, without what git notes beside the lines."""
    found = {}
    for text in re.split(r"^diff --git ", diff, flags=re.MULTILINE)[1:]:
        head, _, body = text.partition("\n")
        lines = [line for line in body.splitlines() if not line.startswith("index ")]
        found[head.rpartition(" b/")[2]] = "\n".join(lines)
    return found


def of_packages(recorded: Mapping[str, str], config: Config) -> list[Difference]:
    """Compare versions: of the packages that compute and of those that the configuration names, each; others, counted.

    recorded: versions by distribution.
    """
    now = manifest.packages()
    differing = [name for name in sorted({*recorded, *now}) if recorded.get(name) != now.get(name)]
    wanted = {name.lower() for name in [*_COMPUTING, *_distributions(config)]}
    first = [name for name in differing if name.lower() in wanted and name != "medlight"]
    found = [Difference(name, recorded.get(name, "-"), now.get(name, "-")) for name in first]
    rest = [name for name in differing if name not in first and name != "medlight"]
    if rest:
        found.append(Difference("other packages", "", f"{len(rest)} differ", False, _few(rest)))
    return found


def of_machine(recorded: Mapping[str, Any], config: Config) -> list[Difference]:
    """Compare Python, the C library, processor, GPUs and threads. recorded: a manifest's ``environment``."""
    import platform

    then, now = recorded["hardware"], manifest.hardware()
    found = [
        *_unequal("python", recorded["python"], platform.python_version()),
        *_unequal("system", _library(recorded["platform"]), _library(platform.platform())),
        *_unequal("processor", then["cpu"], now["cpu"]),
    ]
    if then["gpus"] != now["gpus"]:
        matters = config["trainer"]["accelerator"] != "cpu"
        before, after = (", ".join(side["gpus"]) or "none" for side in (then, now))
        found.append(Difference("GPUs", before, after, matters, "" if matters else "the run used the CPU"))
    count, usable = int(recorded["threads"]["torch"]), int(now["usable_cores"])
    if count > usable:
        found.append(Difference("threads", str(count), f"{usable} at most"))
    return found


def of_data(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Compare two fingerprints of data, case by case."""
    then, today = recorded["cases"], now["cases"]
    gone = [name for name in then if name not in today]
    changed = [name for name in then if name in today and then[name] != today[name]]
    found = []
    for cases, word in ((gone, "gone"), (changed, "changed")):
        if cases:
            count = "all" if len(cases) == len(then) else str(len(cases))
            found.append(Difference("data", f"{len(then)} cases", f"{count} {word}", note=_few(cases)))
    if Counter(recorded["left_out"]) != Counter(now["left_out"]):
        before, after = (f"{len(side['left_out'])} left out" for side in (recorded, now))
        found.append(Difference("data", before, after, False, _few(sorted(set(now["left_out"])))))
    return found + _of_labelled(recorded.get("labelled"), now.get("labelled")) + _of_targets(recorded, now)


def of_split(recorded: Mapping[str, Sequence[str]], today: Mapping[str, Sequence[str]] | str) -> list[Difference]:
    """Compare the recorded split with what the configuration's own gives today (or why it gives none).

    It can't change the rerun, which takes the recorded one.
    """
    if isinstance(today, str):
        return [Difference("split", _parts(recorded), "none", False, f"the recorded one is used ({today})")]
    place = {name: part for part, names in recorded.items() for name in names}
    new = [name for names in today.values() for name in names if name not in place]
    moved = [name for part, names in today.items() for name in names if place.get(name, part) != part]
    found = [Difference("split", _parts(recorded), _parts(today), False, "the recorded one is used")] if moved else []
    if new:
        text = "the run had none of this content; left out"
        found.append(Difference("data", f"{len(place)} cases", f"{len(new)} more", False, text))
    return found


def of_choice(recorded: Sequence[str], today: Sequence[str] | None) -> list[Difference]:
    """Compare the recorded labelled cases with those that the configuration itself chooses today (None: it can't).

    It can't change the rerun, which takes the recorded ones.
    """
    others = [name for name in today or () if name not in recorded]
    if today is not None and not others:
        return []
    now = "none" if today is None else f"{len(today)}, {len(others)} of them others"
    return [Difference("choice of labels", str(len(recorded)), now, False, "the recorded one is used")]


def _parts(split: Mapping[str, Sequence[str]]) -> str:
    return ", ".join(f"{len(names)} {part}" for part, names in split.items())


def _of_labelled(then: Sequence[str] | None, now: Sequence[str] | None) -> list[Difference]:
    if then is None or now is None or sorted(then) == sorted(now):
        return []
    return [Difference("labelled cases", str(len(then)), str(len(now)), note="others than the run had")]


def _of_targets(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    then, today = recorded.get("targets"), now.get("targets")
    return _unequal("targets", then, today) if then and recorded["cases"].keys() == now["cases"].keys() else []


def _unequal(what: str, then: Any, now: Any) -> list[Difference]:
    return [Difference(what, str(then), str(now))] if then != now else []


def _library(platform: str) -> str:
    """The machine and the C library of ``platform.platform()``; another kernel computes no other numbers."""
    return " ".join(part for part in re.split(r"-(?=with-)|-", platform) if part in _MACHINES or "libc" in part)


_MACHINES = ("x86_64", "aarch64", "arm64", "AMD64")


def _distributions(config: Config) -> Iterator[str]:
    """The installed packages that a configuration's classes come from."""
    homes = importlib.metadata.packages_distributions()
    for path, value in flatten(config).items():
        if path.endswith("class_path") and isinstance(value, str):
            yield from homes.get(value.split(".")[0], [])


def _folder_here() -> str | None:
    """Where medlight's own files lie in the repository of the current folder, as git writes it; None elsewhere."""
    root = manifest.repository()
    folder = Path(medlight.__file__).resolve().parent
    return folder.relative_to(root).as_posix() + "/" if root and folder.is_relative_to(root) else None


def _commit(state: Mapping[str, Any] | None) -> str:
    return f"{state['commit'][:10]}{', dirty' if state['dirty'] else ''}" if state else "no repository"


def _about(files: Collection[str], others: Sequence[str]) -> str:
    if others:
        return _few(others)
    return "in medlight only, see above" if files else "no code differs"


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
