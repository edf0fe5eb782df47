"""What must not reach a run: file and folder names, which may hold a patient's."""

from __future__ import annotations

import re

_PATH = re.compile(r"""(?:[A-Za-z]:)?[^\s'"`,;()\[\]=:]*[/\\][^\s'"`,;()\[\]=:]*""")
_METRIC = re.compile(r"(?:train|val|test)/(?:loss|dice|hd95|nsd|auroc|accuracy|f1|ece)(?![\w.])")
_FILE = re.compile(r"[^\s'\"`,;()\[\]=:/\\]+\.(?:nii(?:\.gz)?|dcm|nrrd|mha|mhd|npz|csv|json|ckpt)\b", re.IGNORECASE)


def scrub(text: str) -> str:
    """Return a text with every path and file name of a scan or table in it replaced by ``<file>``; metrics stay."""
    hidden = _PATH.sub(lambda found: found[0] if _METRIC.match(found[0]) else "<file>", text)
    return _FILE.sub("<file>", hidden)
