"""What was converted into a folder, from what content and how: one line of JSON a file, added once it is whole."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

RECORD = "converted.jsonl"
LABELS = "labels"  # the folder of label maps, within the one of images
_STALE_S = 3600.0
Entry = dict[str, Any]


def tidy(out: Path) -> None:
    """Clear away what a killed run left half written."""
    for folder in (out, out / LABELS):
        for path in folder.glob(".*.tmp-*"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE_S:  # else another run may be writing it
                    path.unlink()
    record = out / RECORD
    if record.is_file() and not record.read_bytes().endswith(b"\n"):
        with record.open("a") as file:
            file.write("\n")


def known(out: Path) -> dict[str, Entry]:
    """What was written before, by name; a line that a killed run left half written counts for nothing."""
    found = {}
    try:
        lines = (out / RECORD).read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    for line in lines:
        try:
            entry = json.loads(line)
            wanted = ("key", "files", "notes", *(["regions"] if entry["name"].startswith(f"{LABELS}/") else []))
            found[str(entry["name"])] = {name: entry[name] for name in wanted}
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return found


def note(out: Path, entries: Sequence[Entry]) -> None:
    """Add lines: ``name``, ``key`` (a digest of all that decides the content), ``files``, ``notes``, ``regions``."""
    if entries:
        with (out / RECORD).open("a") as record:
            record.writelines(json.dumps(entry) + "\n" for entry in entries)
