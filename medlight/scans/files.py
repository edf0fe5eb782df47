"""Files: how they are named to a person, and how they are written whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def shown(path: Path) -> str:
    """Name a file as short as it is clear: inside the data root or the current folder, else in full."""
    for root in (os.environ.get("MEDLIGHT_DATA"), os.getcwd()):
        if root and path.is_absolute() and path.is_relative_to(root):
            return str(path.relative_to(root))
    return str(path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary file beside ``path`` (same suffixes) that takes its place at the end, in one step.

    Where the block raises, nothing is left behind and an older ``path`` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex[:12]}.tmp-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
