"""Memory, with what a container or a job of a cluster allows of it (Linux control groups, versions 1 and 2)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_ROOT, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_NONE = 2**60  # bytes: version 1 writes a number that is no limit
_FILES = (  # of a version: folder, limit, what is taken, and how much of that is copies of files, which give way
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ("", "memory.max", "memory.current", "inactive_file"),
)


def memory_limit() -> int | None:
    """Return the bytes that this process and those it is grouped with may take; None where there is no limit."""
    return min((limit for limit, _ in _groups()), default=None)


def free_memory() -> int:
    """Return the bytes that this process can still take: what is free, or what it is allowed where that is less."""
    import psutil

    return min([int(psutil.virtual_memory().available), *(max(limit - taken, 0) for limit, taken in _groups())])


def _groups() -> Iterator[tuple[int, int]]:
    """Give the limit of each group that this process is in, with what is taken of it."""
    for version, limit, taken, cached in _FILES:
        for folder in _folders(version):
            most = _number(folder / limit)
            if most is not None and most < _NONE:
                yield most, max((_number(folder / taken) or 0) - _stat(folder / "memory.stat", cached), 0)


def _folders(version: str) -> list[Path]:
    """The folder of a process's group and those above it; a container sees its own as the root."""
    try:
        lines = [line.split(":", 2) for line in _OWN.read_text().splitlines()]
    except OSError:
        lines = []
    root = _ROOT / version
    own = [root / path.lstrip("/") for _, names, path in lines if version in names.split(",")]
    return [folder for path in own[:1] for folder in (path, *path.parents) if folder.is_relative_to(root)] or [root]


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no such file, or the word "max"
        return None


def _stat(file: Path, name: str) -> int:
    try:
        facts = dict(line.split(" ", 1) for line in file.read_text().splitlines())
        return int(facts.get(name, 0))
    except (OSError, ValueError):
        return 0
