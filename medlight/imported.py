"""The source files of modules, as they were when this process imported them.

A file may be edited while a process goes on computing with what it read, for hours. So medlight's own modules and the
user's are read when they are imported; a forked process inherits what its parent has read. Modules of installed
distributions are told by their versions.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

_LIBRARY = os.path.dirname(os.__file__) + os.sep  # the standard library's
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_sources: dict[str, bytes] = {}


class _Reader:
    """Among the finders of modules, the first: it finds none, and reads the file that another is about to find."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        """Read a module's source, where it is medlight's or the user's."""
        if not name.startswith("medlight.") and not _may_be_own(name, path):
            return
        with suppress(Exception):  # whatever it is, the import itself meets it, and says so
            spec = PathFinder.find_spec(name, path)
            file = spec.origin if spec is not None else None
            if file and file.endswith(".py") and (name.startswith("medlight.") or is_own(file)):
                _sources[file] = Path(file).read_bytes()


def _may_be_own(name: str, path: Sequence[str] | None) -> bool:
    """Whether a module may be the user's; most are not, and are not looked for twice."""
    if path is None:
        return name not in sys.stdlib_module_names
    return any(is_own(os.path.join(folder, "")) for folder in path)


def watch() -> None:
    """Read modules' files from now on, as they are imported."""
    sys.meta_path.insert(0, _Reader())


def is_own(file: str) -> bool:
    """Whether a file belongs neither to the standard library nor to an installed distribution."""
    return not file.startswith(_LIBRARY) and not any(part in file for part in _INSTALLED)


def source(file: str) -> bytes:
    """Return a module's source as it was imported; of one that was not, as it is on disk."""
    return _sources[file] if file in _sources else Path(file).read_bytes()
