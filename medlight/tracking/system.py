"""MLflow's system metrics (CPU, memory, disk, network, GPU), sent the way all other metrics of a run are."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from medlight.tracking.logger import MLflowLogger


class SystemMetrics(SystemMetricsMonitor):
    """MLflow's own monitor and metric names; only its loop is ours.

    The stock loop asks the server for the run at every sample and ends for good at the first failure, and it throws
    away the last sample, so that a fit of less than ten seconds has none.
    """

    def __init__(self, logger: MLflowLogger) -> None:
        logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
        super().__init__(logger.run_id, resume_logging=logger.resumed, tracking_uri=logger.uri)
        self.mlflow_logger: Any = _Recorder(logger)

    def monitor(self) -> None:
        """Sample until told to stop, then once more."""
        stopped = False
        while not stopped:
            self.collect_metrics()
            stopped = self._shutdown_event.wait(self.sampling_interval)
            self.publish_metrics(self.aggregate_metrics())


class _Recorder:
    """What the monitor needs of MLflow's batch logger."""

    total_training_time = total_log_batch_time = 0.0
    data: tuple[Any, ...] = ()

    def __init__(self, logger: MLflowLogger) -> None:
        self._logger = logger

    def record_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self._logger.log_metrics(metrics, step)

    def flush(self) -> None:
        """The run's logger sends by itself."""
