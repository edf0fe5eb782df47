"""Files to volumes and back. Nothing here imports torch."""

from medlight.scans.nifti import write_nifti
from medlight.scans.orientation import orientation, reorient
from medlight.scans.read import SUFFIXES, is_scan, read, stem
from medlight.scans.volume import Channel, Volume

__all__ = ["SUFFIXES", "Channel", "Volume", "is_scan", "orientation", "read", "reorient", "stem", "write_nifti"]
