"""What must not reach a run: file and folder names, which may hold a patient's."""

from __future__ import annotations

import re

_PATH = re.compile(r"""(?:[A-Za-z]:)?[^\s'"`,;()\[\]=:]*[/\\][^\s'"`,;()\[\]=:]*""")
_LOGGED = "loss|loss_step|dice|hd95|nsd|auroc|accuracy|f1|ece|samples_per_s|data_wait_share"
_METRIC = re.compile(rf"(?:train|val|test)/(?:{_LOGGED})(?![\w.])")
_SUFFIX = r"\.(?:nii(?:\.gz)?|dcm|dicom|ima|zip|nrrd|nhdr|mha|mhd|png|jpe?g|tiff?|npz|csv|json|ckpt)\b"
_NAMED = re.compile(rf"(?:^|(?<=: ))[^:]*(?:[/\\]|{_SUFFIX})[^:]*(?=: )", re.IGNORECASE)
_FILE = re.compile(rf"[^\s'\"`,;()\[\]=:/\\]+{_SUFFIX}", re.IGNORECASE)


def scrub(text: str) -> str:
    """Return a text with every path and file name of a scan or table in it replaced by ``<file>``; metrics stay.

    What an error says before its first colon is taken for one name if there is a path in it: folders that are called
    by patients have blanks and commas in them.
    """
    for pattern in (_NAMED, _PATH):
        text = pattern.sub(lambda found: found[0] if _METRIC.match(found[0]) else "<file>", text)
    return _FILE.sub("<file>", text)
