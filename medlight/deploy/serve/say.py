"""What a server says: one line an event, with the time, and nothing that tells who a patient is."""

from __future__ import annotations

import hashlib
import sys
import time


def say(text: str) -> None:
    """Print a line to standard error, where a service manager's journal takes it from."""
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {line}", file=sys.stderr, flush=True)


def short(uid: str) -> str:
    """Digest of a UID, by which lines of one series are found. The UID itself leads to a patient in any archive."""
    return hashlib.sha256(uid.strip("\0 ").encode()).hexdigest()[:12]


def plain(text: str, *hidden: str) -> str:
    """Return an error in one line of at most 500 characters, without the folders that are nobody's business."""
    for name in hidden:
        text = text.replace(f"{name}/", "").replace(name, "") if name else text
    return " ".join(text.split()).lstrip(": ")[:500]
