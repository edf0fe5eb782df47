"""What a program may read: JSON in a file or on standard output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medlight.errors import UsageError


def ready(target: str | None) -> None:
    """Make the folder of a ``--json`` file before the work begins; UsageError where the file can't be written."""
    if not target or target == "-":
        return
    file = Path(target)
    if file.is_dir():
        raise UsageError(f"--json {target}: is a folder; name a file")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--json {target}: {file.parent} can't be made: {error.strerror}") from None


def write_json(target: str | None, content: dict[str, Any] | list[dict[str, Any]]) -> None:
    """Write to a file, or to standard output for ``-``; nowhere for ``None``."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    if target == "-":
        print(text)
    elif target:
        ready(target)
        Path(target).write_text(text + "\n", encoding="utf-8")
