"""What must not reach a run: file and folder names, which may hold a patient's."""

from __future__ import annotations

import re

_PATH = re.compile(r"""(?:[A-Za-z]:)?[^\s'"`,;()\[\]=:]*[/\\][^\s'"`,;()\[\]=:]*""")
_FILE = re.compile(r"[^\s'\"`,;()\[\]=:/\\]+\.(?:nii|nii\.gz|dcm|nrrd|mha|mhd|npz|csv|json|ckpt)\b", re.IGNORECASE)


def scrub(text: str) -> str:
    """Return a text with every path and file name of a scan or table in it replaced by ``<file>``."""
    return _FILE.sub("<file>", _PATH.sub("<file>", text))
