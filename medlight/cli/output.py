"""What a program may read: JSON in a file or on standard output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medlight.errors import UsageError


def ready(target: str | Path | None, option: str = "--json") -> None:
    """Make the folder of an option's file before the work begins; UsageError where the file can't be written."""
    if not target or target == "-":
        return
    file = Path(target)
    if file.is_dir():
        raise UsageError(f"{option} {target}: is a folder; name a file")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_file():
            file.open("a").close()
        elif not file.exists():  # neither a device nor a pipe
            file.touch()
            file.unlink()
    except OSError as error:
        raise UsageError(f"{option} {target}: can't be written ({error.strerror}); mend: name another file") from None


def write_json(target: str | None, content: dict[str, Any] | list[dict[str, Any]]) -> None:
    """Write to a file, or to standard output for ``-``; nowhere for ``None``."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    if target == "-":
        print(text)
    elif target:
        ready(target)
        # a file's name may be no UTF-8; so escaped, JSON gives it back as it was
        Path(target).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
