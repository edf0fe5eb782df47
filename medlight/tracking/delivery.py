"""Sending one run's operations to its tracking store, each point once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import requests
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from medlight.tracking.connection import client_of

Operation = dict[str, Any]  # plain JSON values; "op" names the kind
_REFUSED = {
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "INVALID_STATE",
    "RESOURCE_CONFLICT",
}


def is_refusal(error: Exception) -> bool:
    """Whether the store understood and said no, so that sending again can't help."""
    if isinstance(error, MlflowException):
        return error.error_code in _REFUSED
    if isinstance(error, requests.exceptions.RequestException | OSError):
        return False
    return isinstance(error, TypeError | ValueError | KeyError | AttributeError)


class Delivery:
    """Sends operations. ``ask``: earlier points may be there, so the store's history is asked before points are sent.

    After a failure it is not known what arrived, and the history is asked too.
    """

    def __init__(self, run_id: str, uri: str, *, ask: bool) -> None:
        self.run_id, self.uri = run_id, uri
        self._ask = ask
        self._steps: dict[str, set[int]] = {}

    @property
    def client(self) -> MlflowClient:
        """The store's client."""
        return client_of(self.uri)

    def send(self, operation: Operation) -> None:
        """Send one operation; whatever goes wrong is raised, and remembered as perhaps delivered."""
        try:
            self._dispatch(operation)
        except Exception:
            self._ask = True
            self._steps.clear()
            raise

    def _dispatch(self, operation: Operation) -> None:
        match operation["op"]:
            case "metrics":
                self._metrics(operation["points"])
            case "params":
                params = [Param(key, value) for key, value in operation["values"].items()]
                for first in range(0, len(params), 100):
                    self.client.log_batch(self.run_id, params=params[first : first + 100])
            case "tags":
                self.client.log_batch(self.run_id, tags=[RunTag(k, v) for k, v in operation["values"].items()])
            case "artifact":
                if Path(operation["file"]).exists():  # one that is gone was delivered before a crash
                    self.client.log_artifact(self.run_id, operation["file"], operation["folder"])
            case "image":
                self._image(operation)
            case "dataset":
                dataset = Dataset(**operation["dataset"])
                tags = [InputTag("mlflow.data.context", operation["context"])]
                self.client.log_inputs(self.run_id, [DatasetInput(dataset, tags)])
            case "status" if operation["status"] == "RUNNING":
                self.client.update_run(self.run_id, status="RUNNING")
            case "status":
                self.client.set_terminated(self.run_id, operation["status"], operation["time"])

    def _metrics(self, points: list[tuple[str, float, int, int]]) -> None:
        """Send the points whose step their curve doesn't have yet: (key, value, milliseconds, step)."""
        fresh: dict[tuple[str, int], Metric] = {}
        for key, value, stamp, step in points:
            if step not in self._known(key):
                fresh.setdefault((key, step), Metric(key, value, stamp, step))
        metrics = list(fresh.values())
        for first in range(0, len(metrics), 1000):
            part = metrics[first : first + 1000]
            self.client.log_batch(self.run_id, metrics=part)
            for metric in part:
                self._steps[metric.key].add(metric.step)

    def _known(self, key: str) -> set[int]:
        if key not in self._steps:
            history = self.client.get_metric_history(self.run_id, key) if self._ask else []
            self._steps[key] = {metric.step for metric in history}
        return self._steps[key]

    def _image(self, operation: Operation) -> None:
        from PIL import Image

        key, step = operation["key"], operation["step"]
        start = f"images/{key.replace('/', '~')}+step+{step}+"
        there = self._ask and any(
            item.path.startswith(start) and item.path.endswith(".webp")  # written last
            for item in self.client.list_artifacts(self.run_id, "images")
        )
        if not there and Path(operation["file"]).exists():
            with Image.open(operation["file"]) as image:
                self.client.log_image(self.run_id, image, key=key, step=step, timestamp=operation["time"])
