"""medlight: launch experiment sweeps on medical scans, compare the runs in MLflow, reproduce papers."""

from medlight import imported

__version__ = "0.1.0"

imported.watch()  # before any module that computes: a run records the code that it ran, not what the files say later
