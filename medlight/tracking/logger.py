"""Lightning's logger for MLflow: buffered, durable, and indifferent to a tracking server that goes away."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from mlflow import MlflowClient

from medlight.tracking import store
from medlight.tracking.connection import client_of, reached, tracking_uri
from medlight.tracking.identity import scrub
from medlight.tracking.spool import Sender, Spool

log = logging.getLogger("medlight.tracking")
_PARAM, _TAG = 6000, 5000  # characters that MLflow keeps of a value
Point = tuple[str, float, int, int]


def is_rank_zero() -> bool:
    """Whether this process is the one that writes (of a distributed fit, or of none)."""
    return getattr(rank_zero_only, "rank", 0) == 0


class MLflowLogger(Logger):
    """One MLflow run. Values are appended to a buffer and sent by a thread in batches, every two seconds.

    Creating (or reopening) the run needs the store; after that nothing here raises or waits long: what can't be
    delivered is kept in ``mlruns/spool`` and delivered when the store is back, by this process or by the next medlight
    command in the same folder. Each metric has each step once, also when a run is resumed. On ranks other than zero
    the logger only knows ``run_id`` and ``local_dir``.

    Args:
        study: the experiment.
        name: the run's name.
        kind: tag ``medlight.kind``: fit, trial, sweep, export.
        parent: id of the run that this one belongs to.
        tags: more tags.
        run_id: an existing run to go on with.

    Raises: MedlightError where the store can't be reached; UsageError for an unknown ``run_id``.
    """

    def __init__(
        self,
        study: str,
        name: str,
        *,
        kind: str = "fit",
        parent: str | None = None,
        tags: Mapping[str, str] | None = None,
        run_id: str | None = None,
    ) -> None:
        super().__init__()
        self.study, self._name, self.resumed = study, name, run_id is not None
        self.active = is_rank_zero()
        self.tags_before: dict[str, str] = {}  # those that an existing run had
        self._buffer: list[Point] = []
        self._filling, self._emptying = threading.Lock(), threading.Lock()
        self._last_step = 0
        if not self.active:
            self.run_id = run_id or os.environ.get("MEDLIGHT_RUN_ID", "")
            self.local_dir = Path(os.environ.get("MEDLIGHT_RUN_DIR") or Path.cwd() / "mlruns" / "local" / self.run_id)
            self.is_local = True
            return
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # one line about a lost server is enough
        self.uri = tracking_uri()
        run = self._open(run_id, {"medlight.kind": kind, **({"mlflow.parentRunId": parent} if parent else {})}, tags)
        self.run_id = str(run.info.run_id)
        folder = store.local_path(run.info.artifact_uri)
        self.is_local = folder is not None
        self.local_dir = folder or Path.cwd() / "mlruns" / "local" / self.run_id
        os.environ["MEDLIGHT_RUN_DIR"] = str(self.local_dir)  # for the processes of the other ranks
        self.spool = Spool(self.run_id, self.uri, store.spool_dir(), again=self.resumed)
        self._sender = Sender(self.spool, self._collect)
        atexit.register(self._leave)

    def _open(self, run_id: str | None, own: dict[str, str], tags: Mapping[str, str] | None) -> Any:
        """Create the run, or put an existing one back to work."""
        alive = {**store.process_tags(), **(tags or {})}
        if run_id is None:
            experiment = store.experiment_id(self.study)
            named = {"medlight.study": self.study, "medlight.name": self._name}
            with reached():
                return self.client.create_run(experiment, run_name=self._name, tags={**own, **named, **alive})
        with reached():
            run = self.client.get_run(run_id)
            self.tags_before = dict(run.data.tags)
            self.client.update_run(run_id, status="RUNNING")
            for key, value in alive.items():
                self.client.set_tag(run_id, key, value)
            return run

    @property
    def client(self) -> MlflowClient:
        """The store's client."""
        return client_of(self.uri)

    @property
    def name(self) -> str:
        """The run's name."""
        return self._name

    @property
    def version(self) -> str:
        """The run's id."""
        return self.run_id

    @property
    def save_dir(self) -> str:
        """Where the run's files lie on this machine."""
        return str(self.local_dir)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append values at a step (``None``: the last one). Microseconds: they are sent later, by a thread."""
        if not self.active:
            return
        self._last_step = self._last_step if step is None else int(step)
        now = int(time.time() * 1000)
        points = [(key, float(value), now, self._last_step) for key, value in metrics.items()]
        with self._filling:
            self._buffer.extend(points)
        self._sender.start()

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Lightning's hook: nothing, since the configuration is recorded whole (``RunRecord``)."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record searchable parameters, cut to the length that MLflow keeps."""
        values = {key[:250]: str(value)[:_PARAM] for key, value in params.items()}
        self._put({"op": "params", "values": values})

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags; a reason is freed of file names, which may hold a patient's."""
        values = {k[:250]: (scrub(str(v)) if k == "medlight.reason" else str(v))[:_TAG] for k, v in tags.items()}
        self._put({"op": "tags", "values": values})

    def log_text(self, text: str, artifact_file: str) -> None:
        """Write a text as the artifact ``artifact_file`` (a path inside the run)."""
        if not self.active:
            return
        folder, _, name = artifact_file.rpartition("/")
        file = self.spool.keep(name)
        file.write_text(text)
        self._put({"op": "artifact", "file": str(file), "folder": folder or None})

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Copy a file or folder into the run (under ``folder``); what lies in ``local_dir`` is not copied before."""
        if not self.active:
            return
        source = Path(path).absolute()
        if self.is_local and source.parent == self.local_dir / (folder or ""):
            return  # it is where it belongs
        if self.local_dir not in source.parents:
            kept = self.spool.keep(source.name)
            shutil.copytree(source, kept) if source.is_dir() else shutil.copy2(source, kept)
            source = kept
        self._put({"op": "artifact", "file": str(source), "folder": folder})

    def log_image(self, array: npt.NDArray[np.uint8], key: str, step: int) -> None:
        """Record a picture (H, W, 3) uint8 under a key, at a step."""
        if not self.active:
            return
        from PIL import Image

        file = self.spool.keep("image.png")
        Image.fromarray(np.asarray(array, dtype=np.uint8)).save(file)
        now = int(time.time() * 1000)
        self._put({"op": "image", "file": str(file), "key": key, "step": int(step), "time": now})

    def log_dataset(self, dataset: Mapping[str, Any], context: str) -> None:
        """Record a data set (the fields of ``mlflow.data``'s ``to_dict``) as an input of the run."""
        self._put({"op": "dataset", "dataset": dict(dataset), "context": context})

    def flush(self, timeout: float = 5.0) -> bool:
        """Bring all values to disk, and to the store within ``timeout`` seconds; True where the store has them."""
        if not self.active:
            return True
        self._collect()
        if self.spool.away:  # the thread tries again by itself
            return False
        return self._sender.drain(timeout)

    def finalize(self, status: str) -> None:
        """Close the run: FINISHED, or after an error FAILED, after a signal KILLED; the store has 10 s to be there."""
        if not self.active:
            return
        stopped = isinstance(sys.exception(), KeyboardInterrupt | SystemExit)
        final = "FINISHED" if status in ("success", "finished") else "KILLED" if stopped else "FAILED"
        self._put({"op": "status", "status": final, "time": int(time.time() * 1000)})
        if not self._sender.drain(10.0, patient=True):
            where = os.path.relpath(self.spool.folder)
            log.warning("values wait in %s; the next medlight command in this folder delivers them", where)

    def _put(self, operation: dict[str, Any]) -> None:
        """Queue an operation behind all metrics so far."""
        if not self.active:
            return
        self._collect()
        self.spool.put(operation)
        self._sender.start()

    def _collect(self) -> None:
        """Turn the buffer into operations."""
        with self._emptying:  # batches must not change places
            with self._filling:
                points, self._buffer = self._buffer, []
            parts = [points[first : first + 1000] for first in range(0, len(points), 1000)]
            self.spool.put(*({"op": "metrics", "points": part} for part in parts))

    def _leave(self) -> None:
        """At the end of the process: one more try."""
        self._collect()
        if self.spool.pending and not self.spool.away:
            self._sender.drain(5.0)
