"""Files: how they are named to a person, and how they are written whole or not at all."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medlight.errors import UsageError


def shown(path: Path) -> str:
    """Name a file as short as it is clear: inside the data root or the current folder, else in full."""
    for root in (os.environ.get("MEDLIGHT_DATA"), os.getcwd()):
        if root and path.is_absolute() and path.is_relative_to(root):
            return str(path.relative_to(root))
    return str(path)


def apart(source: Path, out: Path) -> None:
    """Raise UsageError where ``out`` is ``source`` or lies in it: what was given is never written to."""
    place, target = source.resolve(), out.resolve()
    if target == place or (place.is_dir() and target.is_relative_to(place)):
        raise UsageError(f"{out}: lies in {source}, which is never written to; mend: give an OUT elsewhere")


def nameless(text: str, path: Path, member: str = "") -> str:
    """Take the file that a message names out of it, for what is kept: file names may be patients'.

    A name that may as well be a word or a number of the message (``gap``, ``10``, ``CT``) is taken from its beginning
    alone, where messages have it.
    """
    names = dict.fromkeys((f"{shown(path)}:{member}", f"{path}:{member}", shown(path), str(path), path.name, member))
    begun = False
    for name in filter(None, names):
        first = re.match(rf"{re.escape(name)}(?=:| \()", text)
        if first and not begun:
            text, begun = text[first.end() :].lstrip(": "), True
        if _telling(name):
            text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "", text)
    return " ".join(text.split()).lstrip(": ")


def _telling(name: str) -> bool:
    plain = name.islower() or name.isdigit()
    return "/" in name or len(name) >= 6 or (len(name) >= 4 and not plain)


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
