"""Where data lies."""

from __future__ import annotations

import os
from pathlib import Path

from medlight.config import nearest
from medlight.errors import UsageError


def data_path(text: str) -> Path:
    """Return the file or folder that a configuration names.

    An absolute path (``~`` allowed) is taken as it is. A relative one is looked for in the data root that
    ``MEDLIGHT_DATA`` names, then in the current folder. Raises UsageError that says where it looked.
    """
    given = Path(text).expanduser()
    root = os.environ.get("MEDLIGHT_DATA")
    tried = [given] if given.is_absolute() else [Path(folder) / given for folder in (root, Path.cwd()) if folder]
    for path in tried:
        if path.exists():
            return path.absolute()
    hint = "" if root or given.is_absolute() else "; set MEDLIGHT_DATA to the folder that holds the data"
    raise UsageError(f"{text}: looked for {' and '.join(map(str, tried))}{_beside(tried[0])}{hint}")


def _beside(path: Path) -> str:
    """Name what is there instead: the nearest entry of the deepest folder that exists."""
    while not path.parent.is_dir():
        path = path.parent
    return nearest(path.name, [entry.name for entry in path.parent.iterdir()]) or ", there is nothing"
