"""What has to be known to repeat a run: code, versions, hardware, configuration, data."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import marshal
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from types import CodeType
from typing import Any

import psutil

import medlight
from medlight import imported
from medlight.config import Config, flatten

_DIFF_LIMIT = 1_000_000  # characters
_TEXTS = ("*.py", "*.yaml", "*.yml", "*.toml", "*.cfg", "*.sh", "Makefile")  # a table in a repository may hold names


def config_digest(config: Config) -> str:
    """Return the sha256 of a resolved configuration, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()


@cache
def code_digest() -> str:
    """Return the sha256 over medlight's own source files, paths and contents; as imported, if they were."""
    root = Path(medlight.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root).as_posix()}\0".encode())
        digest.update(hashlib.sha256(imported.source(str(file))).digest())
    return digest.hexdigest()


def code(config: Config | None = None) -> dict[str, str]:
    """Return a digest of each module that this process has imported, as far as they make results.

    Those are medlight's modules, and the user's own that a configuration names, with what those import: no part of an
    installed distribution, which its version tells. A digest is of the code that runs: of the file as it was imported.

    Comments, the words of docstrings and the place in the file don't count. Tracking, export and the commands make no
    results, and neither do the ``__init__.py`` of medlight's rooms, which only pass names on.
    """
    found = {name: getattr(module, "__file__", None) or "" for name, module in list(sys.modules.items())}
    files = {name: file for name, file in found.items() if _makes_results(name) and Path(file).name != "__init__.py"}
    files |= _own(config or {}, {name: file for name, file in found.items() if _is_own(name, file)})
    return {name: _digest(imported.source(file)) for name, file in sorted(files.items()) if file.endswith(".py")}


def changed_code(recorded: Mapping[str, str], class_paths: Iterable[str] = ()) -> list[str]:
    """Return the names of the modules that are no longer what a run recorded of them with `code`.

    class_paths: those of its configuration; the user's own of which it recorded nothing are named too.
    """
    changed = [name for name, digest in recorded.items() if _digest_on_disk(name) != digest]
    named = {name for path in class_paths for name in _modules(path)} - recorded.keys()
    return changed + sorted(name for name in named if _is_own(name, _file(name) or "") and _digest_on_disk(name))


def class_paths(config: Config) -> tuple[str, ...]:
    """Return the import paths of the classes that a configuration names."""
    return tuple(sorted({text for key, text in _texts(config) if key.endswith("class_path")}))


def running_otherwise(recorded: Mapping[str, str], config: Config) -> list[str]:
    """Return the names of the modules that this process runs otherwise than recorded, whatever their files say now."""
    return [name for name, digest in code(config).items() if recorded.get(name, digest) != digest]


_NO_RESULTS = ("tracking", "cli", "compare", "sweeps", "reproduce", "deploy", "imported")


def _makes_results(name: str) -> bool:
    room = name.split(".")
    return room[0] == "medlight" and len(room) > 1 and room[1] not in _NO_RESULTS


def _is_own(name: str, file: str) -> bool:
    """Whether a module is the user's own; a script that is run is none that a configuration could name."""
    return bool(file) and name.split(".")[0] not in ("medlight", "__main__", "__mp_main__") and imported.is_own(file)


def _own(config: Config, known: Mapping[str, str]) -> dict[str, str]:
    """Of the user's own modules (``known``: their files), those that a configuration names, and what these import."""
    names = {name for _, text in _texts(config) for name in _modules(text) if name in known}
    waiting = sorted(names)
    while waiting:
        name = waiting.pop()
        if not known[name].endswith(".py"):
            continue
        new = {other for other in _imports(name, known[name]) if other in known} - names
        names |= new
        waiting += sorted(new)
    return {name: known[name] for name in names}


def _texts(config: Config) -> list[tuple[str, str]]:
    return [(path, value) for path, value in flatten(config).items() if isinstance(value, str)]


def _modules(path: str) -> list[str]:
    """The modules that there may be in the import path ``a.b.Class``: ``a``, ``a.b``."""
    return _prefixes(path)[:-1]


def _prefixes(name: str) -> list[str]:
    """``a.b.c``: ``a``, ``a.b``, ``a.b.c``; to import the last is to import them all."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _imports(name: str, file: str) -> set[str]:
    """Every name that may be a module which a module's source imports, wherever it does."""
    package = name if Path(file).name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(imported.source(file))):
        if isinstance(node, ast.Import):
            found.update(prefix for alias in node.names for prefix in _prefixes(alias.name))
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            start = ".".join([*above, *([node.module] if node.module else [])])
            found.update(prefix for alias in node.names for prefix in _prefixes(f"{start}.{alias.name}"))
    return found


def _file(name: str) -> str | None:
    """The file of a module, which is looked for and not imported; None where there is none."""
    try:
        spec = importlib.util.find_spec(name.split(".")[0])
        for prefix in _prefixes(name)[1:]:
            inside = spec.submodule_search_locations if spec is not None else None
            spec = PathFinder.find_spec(prefix, inside) if inside is not None else None
    except (ImportError, ValueError, AttributeError):  # a module without a spec, a finder that refuses
        return None
    return spec.origin if spec is not None else None


def _digest_on_disk(name: str) -> str | None:
    file = _file(name)
    try:
        return _module_digest(Path(file)) if file and file.endswith(".py") else None
    except (OSError, SyntaxError):  # gone meanwhile, or half written
        return None


def _module_digest(file: Path) -> str:
    return _digest(file.read_bytes())


@cache
def _digest(source: bytes) -> str:
    compiled = compile(source, "", "exec", optimize=2, dont_inherit=True)
    return hashlib.sha256(marshal.dumps(_without_lines(compiled), 0)).hexdigest()[:16]


def _without_lines(compiled: CodeType) -> CodeType:
    constants = tuple(_without_lines(c) if isinstance(c, CodeType) else c for c in compiled.co_consts)
    return compiled.replace(co_linetable=b"", co_firstlineno=1, co_consts=constants)


def environment() -> dict[str, Any]:
    """Return what a run ran on: code digest, git commit, versions of all packages, hardware, threads."""
    return {
        "medlight": medlight.__version__,
        "code_digest": code_digest(),
        "git": git_state(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages(),
        "hardware": hardware(),
        "threads": threads(),
    }


def packages() -> dict[str, str]:
    """Return the version of every installed distribution."""
    found = ((d.metadata["Name"], d.version) for d in importlib.metadata.distributions())
    return dict(sorted((name, version) for name, version in found if name))


def hardware() -> dict[str, Any]:
    """Return the CPU, its physical and logical cores, RAM in GB, and the GPUs."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "cpu": _cpu_model(),
        "cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count(),
        "ram_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": gpus,
    }


def threads() -> dict[str, Any]:
    """Return how many threads the numerical libraries use."""
    import torch

    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    return {"torch": torch.get_num_threads(), **{name: os.environ[name] for name in names if name in os.environ}}


def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """Return commit, branch and whether files differ, of the repository that the user works in; None without one."""
    commit = _git("rev-parse", "HEAD", folder=folder)
    if commit is None:
        return None
    changed = _git("status", "--porcelain", "--untracked-files=no", folder=folder)
    branch = _git("rev-parse", "--abbrev-ref", "HEAD", folder=folder)
    return {"commit": commit.strip(), "branch": (branch or "").strip(), "dirty": bool(changed and changed.strip())}


def uncommitted_diff(folder: Path | None = None) -> str:
    """Return the uncommitted changes of code and configuration, at most 1 MB of text; empty without a repository."""
    diff = _git("diff", "HEAD", "--no-ext-diff", "--no-color", "--no-renames", "--", *_TEXTS, folder=folder) or ""
    return diff if len(diff) <= _DIFF_LIMIT else f"{diff[:_DIFF_LIMIT]}\n... cut: {len(diff)} characters in all\n"


def diff_since(commit: str) -> str | None:
    """Return how code and configuration differ from a commit, uncommitted changes with them; None if it isn't known."""
    return _git("diff", commit, "--no-ext-diff", "--no-color", "--no-renames", "--", *_TEXTS, folder=None)


def repository() -> Path | None:
    """Return the root of the repository that the user works in."""
    root = _git("rev-parse", "--show-toplevel", folder=None)
    return Path(root.strip()) if root else None


def data_fingerprint(datamodule: Any) -> dict[str, Any]:
    """Return a data module's cases: digest per id, split, and those left out with the kind of reason; no file names.

    Cases go by the ids of a manifest, else by their content (``datamodule.recorded``); those left out are numbered.
    mended: of DICOM cases in which anything was, a line each; only where there are such.
    labelled: the training cases that kept their label, in the same names; only of a data module that hides some.
    targets: a digest of the cases' targets, which a manifest may change while their files stay; only where there are.
    digest: one over what a fit learns from, to tell data sets apart at a glance.
    """
    split = getattr(datamodule, "split", None)
    names = getattr(datamodule, "recorded", {})
    digests = {names.get(case, case): digest for case, digest in sorted(getattr(datamodule, "digests", {}).items())}
    split_ids = split.to_dict() if split is not None else {}
    parts = {name: [names.get(case, case) for case in ids] for name, ids in split_ids.items()}
    bad = [_reason(case.reason) for case in getattr(datamodule, "bad", [])]
    hides = hasattr(datamodule, "labelled_ids")
    labelled = {"labelled": [names.get(case, case) for case in datamodule.labelled_ids]} if hides else {}
    targets = _targets(datamodule)
    whole = json.dumps([digests, parts, *labelled.values(), *targets.values()], sort_keys=True).encode()
    digest = hashlib.sha256(whole).hexdigest()[:16]
    found = {"digest": digest, "cases": digests, "split": parts, **labelled, **targets, "left_out": bad}
    mended = dict(getattr(datamodule, "mended", {}))
    return {**found, "mended": mended} if mended else found


def _targets(datamodule: Any) -> dict[str, str]:
    names = getattr(datamodule, "recorded", {})
    cases = [prepared.case for part in getattr(datamodule, "prepared", {}).values() for prepared in part]
    found = sorted((names.get(case.id, case.id), case.target) for case in cases if case.target is not None)
    return {"targets": hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]} if found else {}


_REASONS = {
    "label": ("unknown label", "label value"),
    "missing label": ("no label", "without a label", "has no label"),
    "missing image": ("no image", "without an image"),
    "geometry": ("shape", "affine", "spacing", "grid", "orientation"),
    "unreadable": ("empty", "unreadable", "read", "truncated", "corrupt", "header"),
}


def _reason(text: str) -> str:
    """Return the kind of a reason; the text itself names files."""
    lower = text.lower()
    return next((kind for kind, words in _REASONS.items() if any(word in lower for word in words)), "other")


def _git(*arguments: str, folder: Path | None) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, errors="replace", timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
