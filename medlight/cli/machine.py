"""What can be said of this machine without importing anything heavy."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from medlight.cgroups import free_memory, memory_limit

Facts = dict[str, Any]
GB = 1e9
# Instructions that decide how fast low precision runs on a CPU.
_INSTRUCTIONS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "bf16",
    "i8mm",
    "sve",
)
NEEDED = {
    "torch": "torch",
    "lightning": "lightning",
    "monai": "monai",
    "torchio": "torchio",
    "mlflow": "mlflow",
    "optuna": "optuna",
    "nibabel": "nibabel",
}


def version(distribution: str) -> str | None:
    """The installed version of a distribution, None where it is absent."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def clash() -> str | None:
    """What is wrong where both kinds of onnxruntime are installed, which pip allows; None where it isn't so."""
    if not (version("onnxruntime") and version("onnxruntime-gpu")):
        return None
    return (
        "onnxruntime and onnxruntime-gpu overwrite each other; mend: pip uninstall both, then install one of the "
        "extras onnx and gpu"
    )


def say_clash() -> None:
    """Print that on standard error, before anything is run by the one or the other."""
    if said := clash():
        print(said, file=sys.stderr)


def hardware() -> Facts:
    """Processor, memory (bytes / 1e9) and what a container allows of both."""
    import psutil

    memory = psutil.virtual_memory()
    total = min(memory.total, memory_limit() or memory.total)
    return {
        "processor": _processor(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "threads_allowed": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instructions": _instructions(),
        "memory_gb": round(total / GB, 1),
        "memory_free_gb": round(free_memory() / GB, 1),
        "nvidia_driver": Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None,
    }


def _cpuinfo(key: str) -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    found = re.search(rf"^{key}\s*:\s*(.*)$", text, flags=re.MULTILINE | re.IGNORECASE)
    return found[1].strip() if found else ""


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _instructions() -> list[str]:
    there = set((_cpuinfo("flags") or _cpuinfo("features")).split())
    return [name for name in _INSTRUCTIONS if name in there]


def folders() -> Facts:
    """The working folder (can it be written to, how much is free) and its prepared store."""
    here = Path.cwd()
    store = here / "mlruns" / "store"
    files = [entry for entry in store.rglob("*") if entry.is_file()] if store.is_dir() else []
    place = next(folder for folder in (here / "mlruns", here) if folder.exists())
    return {
        "working_folder": str(here),
        "writable": os.access(place, os.W_OK),
        "free_gb": round(shutil.disk_usage(here).free / GB, 1),
        "store": str(store),
        "store_files": len(files),
        "store_gb": round(sum(file.stat().st_size for file in files) / GB, 3),
    }


def data_root() -> Facts:
    """``MEDLIGHT_DATA``: whether it is set, whether it is there, and its folders."""
    text = os.environ.get("MEDLIGHT_DATA")
    if not text:
        return {"set": False}
    root = Path(text)
    names = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    return {"set": True, "path": text, "exists": root.is_dir(), "folders": names}


def git() -> Facts:
    """The version of git, and whether this folder is in a repository (a run then records its commit)."""
    program = shutil.which("git")
    if not program:
        return {"version": None, "repository": False}
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    inside = subprocess.run([program, "rev-parse", "--is-inside-work-tree"], capture_output=True, check=False)
    return {"version": said.removeprefix("git version ").strip(), "repository": inside.returncode == 0}


def extras(gpu: bool) -> dict[str, list[str]]:
    """For each optional extra that is not complete, the distributions it lacks; GPU ones only where a GPU is."""
    try:
        required = importlib.metadata.requires("medlight") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    wanted: dict[str, list[str]] = {}
    for line in required:
        found = re.match(r"([A-Za-z0-9._-]+).*extra == ['\"]([^'\"]+)['\"]", line)
        if found and found[1] != "medlight":
            wanted.setdefault(found[2], []).append(found[1])
    skipped = {"dev"} | (set() if gpu else {"gpu", "tensorrt", "tensorrt-rtx"})
    if version("onnxruntime-gpu"):
        skipped.add("onnx")  # the two share a folder: one or the other
    elif not gpu or version("onnxruntime"):
        skipped.add("gpu")
    missing = {
        extra: [n for n in names if version(n) is None] for extra, names in wanted.items() if extra not in skipped
    }
    return {extra: names for extra, names in sorted(missing.items()) if names}


def interpreter() -> Facts:
    """The Python that runs this."""
    return {"version": platform.python_version(), "path": sys.executable, "system": platform.platform(terse=True)}
