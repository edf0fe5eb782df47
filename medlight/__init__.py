"""medlight: launch experiment sweeps on medical scans, compare the runs in MLflow, reproduce papers."""

__version__ = "0.1.0"
