"""What has to be known to repeat a run: code, versions, hardware, configuration, data."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import marshal
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

import psutil

import medlight
from medlight.config import Config

_DIFF_LIMIT = 1_000_000  # characters
_TEXTS = ("*.py", "*.yaml", "*.yml", "*.toml", "*.cfg", "*.sh", "Makefile")  # a table in a repository may hold names


def config_digest(config: Config) -> str:
    """Return the sha256 of a resolved configuration, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()


@cache
def code_digest() -> str:
    """Return the sha256 over medlight's own source files, paths and contents."""
    root = Path(medlight.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root).as_posix()}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def code() -> dict[str, str]:
    """Return a digest of each of medlight's modules that this process has imported, as far as they make results.

    Comments, the words of docstrings and the place in the file don't count. Tracking, export and the commands make no
    results, and neither do the ``__init__.py`` of the rooms, which only pass names on.
    """
    files = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
    found = {name: file for name, file in files.items() if file and Path(file).name != "__init__.py"}
    return {name: _module_digest(Path(file)) for name, file in sorted(found.items()) if _makes_results(name)}


def changed_code(recorded: Mapping[str, str]) -> list[str]:
    """Return the names of the modules that are no longer what a run recorded of them with `code`."""
    root = Path(medlight.__file__).parents[1]
    changed = []
    for name, digest in recorded.items():
        path = root.joinpath(*name.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if not file.is_file() or _module_digest(file) != digest:
            changed.append(name)
    return changed


_NO_RESULTS = ("tracking", "cli", "compare", "sweeps", "reproduce", "deploy")


def _makes_results(name: str) -> bool:
    room = name.split(".")
    return room[0] == "medlight" and len(room) > 1 and room[1] not in _NO_RESULTS


@cache
def _module_digest(file: Path) -> str:
    compiled = compile(file.read_text(encoding="utf-8"), "", "exec", optimize=2, dont_inherit=True)
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
