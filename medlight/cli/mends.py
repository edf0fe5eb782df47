"""``--on KEY=VALUE``: what to do with a DICOM series that is no regular volume."""

from __future__ import annotations

import argparse

HELP = "mend a DICOM series: gap=interpolate, uneven=resample, tilt=deskew, duplicate=first (default: error)"


def add_on(parser: argparse.ArgumentParser) -> None:
    """Declare the flag; it may be given several times."""
    parser.add_argument("--on", action="append", default=[], metavar="KEY=VALUE", help=HELP)


def mends(texts: list[str]) -> dict[str, str]:
    """Return what the flags say by key, ``error`` included; UsageError where there is no such mend."""
    if not texts:
        return {}
    from medlight.scans.dicom.mend import Mends

    Mends.parse(texts)
    pairs = (text.partition("=") for text in texts)
    return {key.strip(): value.strip() for key, _, value in pairs}
