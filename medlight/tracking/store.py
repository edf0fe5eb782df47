"""Runs and studies in the tracking store: making, finding, reading them."""

from __future__ import annotations

import os
import re
import socket
import time
from datetime import datetime
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlparse

import psutil
from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException

from medlight.config import nearest
from medlight.errors import MedlightError, UsageError
from medlight.tracking.connection import (
    cause,
    client,
    client_of,
    creation,
    masked,
    reached,
    sqlite_file,
    tracking_uri,
)
from medlight.tracking.spool import Spool, journals, owner_alive

__all__ = [
    "BEST",
    "BEST_TAG",
    "artifact",
    "best_checkpoint",
    "best_child",
    "children",
    "client",
    "client_of",
    "deliver_leftovers",
    "experiment_id",
    "find_run",
    "is_alive",
    "local_path",
    "process_tags",
    "reached",
    "require_store",
    "resolve_run",
    "runs",
    "runs_of",
    "spool_dir",
    "tracking_uri",
    "unfinished",
]

BEST = "checkpoints/best.ckpt"
BEST_TAG = "medlight.best_sha256"
_FRESH = 90  # seconds; nine samples of the system metrics, a run's sign of life


def spool_dir() -> Path:
    """Return the folder of values that still have to reach the server."""
    return Path.cwd() / "mlruns" / "spool"


def experiment_id(study: str) -> str:
    """Return the id of a study's experiment, made if it isn't there; with SQLite, artifacts lie in its folder.

    Raises: UsageError where the experiment was deleted; MedlightError where the store can't be reached.
    """
    uri = tracking_uri()
    found = client()
    with reached(), creation(uri):
        experiment = found.get_experiment_by_name(study)
        if experiment is None:
            file = sqlite_file(uri)
            location = (file.parent / "artifacts").as_uri() if file else None
            return _created(found, study, location)
        if experiment.lifecycle_stage == "deleted":
            mend = f"mlflow experiments restore -x {experiment.experiment_id}, or give the study another name"
            raise UsageError(f"study {study!r}: its MLflow experiment was deleted; {mend}")
        return str(experiment.experiment_id)


def _created(found: MlflowClient, study: str, location: str | None) -> str:
    try:
        return str(found.create_experiment(study, artifact_location=location))
    except MlflowException:
        experiment = found.get_experiment_by_name(study)  # another machine was first
        if experiment is None:
            raise
        return str(experiment.experiment_id)


def runs(where: str = "", experiments: list[str] | None = None, order: str = "attributes.start_time DESC") -> list[Run]:
    """Return every run that an MLflow filter finds (newest first), in the given experiments or in all."""
    found, token, result = client(), None, []
    with reached():
        ids = [e.experiment_id for e in found.search_experiments()] if experiments is None else experiments
        while ids:
            page = found.search_runs(ids, where, ViewType.ACTIVE_ONLY, 1000, [order], token)
            result += list(page)
            token = page.token
            if not token:
                break
    return result


def find_run(text: str) -> Run:
    """Return the run that a full id, a prefix of at least 4 letters that no other has, or a name means.

    Of several runs with one name those that ran to their end are meant.

    Raises: UsageError that lists what the text could mean, or tells the nearest name; where there are no runs at all
    (no store is made by asking).
    """
    require_store()
    if re.fullmatch(r"[0-9a-f]{32}", text):
        try:
            with reached():
                return client().get_run(text)
        except UsageError:
            raise UsageError(f"no run {text!r} in {masked(tracking_uri())}{_nearest_run(text)}") from None
    matches = runs(f"attributes.run_id LIKE '{text}%'") if re.fullmatch(r"[0-9a-f]{4,31}", text) else []
    if not matches:
        quote = '"' if "'" in text else "'"
        named = runs(f"attributes.run_name = {quote}{text}{quote}") if quote not in text else []
        matches = [run for run in named if _state(run) == "complete"] or named
    if len(matches) == 1:
        return matches[0]
    if matches:
        listed = "; ".join(map(_described, matches[:5])) + ("; ..." if len(matches) > 5 else "")
        raise UsageError(f"{text!r} means {len(matches)} runs ({listed}); give an id")
    if re.fullmatch(r"[0-9a-f]{1,3}", text):
        raise UsageError(f"no run is named {text!r}, and of an id the first 4 letters are needed at least")
    if os.path.isfile(text):
        raise UsageError(f"{text}: is a file, no run; mend: name a run, or for test and export a checkpoint (.ckpt)")
    raise UsageError(f"no run {text!r} in {masked(tracking_uri())}{_nearest_run(text)}")


def require_store() -> None:
    """Raise UsageError where this folder has no runs yet (asking for one would make an empty store)."""
    file = sqlite_file(tracking_uri())
    if file is not None and not file.is_file():
        raise UsageError(f"{file}: no runs here yet; start one with medlight fit -c FILE, or go to the folder of yours")


def _state(run: Run) -> str:
    """A run's own word for how it ended, else the server's."""
    status = {"FINISHED": "complete"}.get(run.info.status, run.info.status.lower())
    return str(run.data.tags.get("medlight.state") or status)


def _described(run: Run) -> str:
    study = run.data.tags.get("medlight.study", "no study")
    start = datetime.fromtimestamp((run.info.start_time or 0) / 1000).strftime("%Y-%m-%d %H:%M")
    return f"{run.info.run_id[:12]} of {study}, {_state(run)}, {start}"


def _nearest_run(text: str) -> str:
    """The hint at a run's name or the start of its id; else at a name that holds the text; else at the newest."""
    every = runs()
    names = {run.info.run_name for run in every if run.info.run_name}
    hint = nearest(text, names | {run.info.run_id[: max(4, len(text))] for run in every})
    holding = sorted(name for name in names if text.casefold() in name.casefold())
    newest = list(dict.fromkeys(run.info.run_name for run in every if run.info.run_name))[:3]
    last = f" (did you mean {holding[0]!r}?)" if holding else f" (the newest are {', '.join(newest)})" if newest else ""
    return hint or last


def resolve_run(text: str) -> str:
    """Return the id of the run that a command line argument means (see ``find_run``)."""
    return str(find_run(text).info.run_id)


def children(run_id: str) -> list[Run]:
    """Return the runs whose parent this is, oldest first."""
    return runs(f"tags.`mlflow.parentRunId` = '{run_id}'", order="attributes.start_time ASC")


def best_child(run_id: str, metric: str, mode: Literal["min", "max"]) -> Run:
    """Return the child that reached the best value of a metric at any step.

    Raises: UsageError where no child has it.
    """
    offspring = children(run_id)
    sign = 1 if mode == "max" else -1
    scored = []
    for run in offspring:
        with reached():
            points = client().get_metric_history(run.info.run_id, metric) if metric in run.data.metrics else []
        values = [sign * p.value for p in points if p.value == p.value]
        scored += [(max(values), run)] if values else []
    if not scored:
        known = {name for run in offspring for name in run.data.metrics}
        raise UsageError(f"run {run_id}: none of its {len(offspring)} runs has {metric!r}{nearest(metric, known)}")
    return max(scored, key=lambda pair: pair[0])[1]


def runs_of(study: str, kind: str | None = None) -> list[Run]:
    """Return the runs of a study, newest first; of one kind (fit, trial, sweep, export, ...) if given."""
    with reached():
        experiment = client().get_experiment_by_name(study)
    if experiment is None:
        return []
    return runs(f"tags.`medlight.kind` = '{kind}'" if kind else "", [experiment.experiment_id])


def unfinished(study: str, name: str, digest: str) -> list[Run]:
    """Return the fits of this study, name and configuration that have not come to their end, newest first.

    Not those that another took the place of (``medlight.state`` superseded).
    """

    def waits(run: Run) -> bool:
        tags = run.data.tags
        wanted = tags.get("medlight.name") == name and tags.get("medlight.config_digest") == digest
        return wanted and run.info.status != "FINISHED" and tags.get("medlight.state") != "superseded"

    return [run for run in runs_of(study, "fit") if waits(run)]


def is_alive(run: Run) -> bool:
    """Whether a run's process still works on it; on another machine, whether it gave a sign of life lately."""
    tags = run.data.tags
    if run.info.status != "RUNNING":
        return False
    if tags.get("medlight.host") == socket.gethostname():
        return owner_alive(int(tags.get("medlight.pid", 0)), float(tags.get("medlight.process_start", 0)))
    newest = max((metric.timestamp for metric in run.data._metric_objs), default=run.info.start_time)
    return time.time() - newest / 1000 < _FRESH


def process_tags() -> dict[str, str]:
    """Return the tags that tell whether the process of a run is still there."""
    start = psutil.Process().create_time()
    return {
        "medlight.host": socket.gethostname(),
        "medlight.pid": str(os.getpid()),
        "medlight.process_start": f"{start:.2f}",
    }


def local_path(uri: str) -> Path | None:
    """Return the folder that an artifact address means on this machine, or None where it is a server's."""
    parsed = urlparse(uri)
    return Path(unquote(parsed.path)) if parsed.scheme in ("", "file") else None


def artifact(run_id: str, path: str) -> Path:
    """Return a run's artifact as a local file or folder, fetched where it lies on a server.

    Raises: MedlightError where the run has no such artifact; UsageError for an unknown run.
    """
    with reached():
        run = client().get_run(run_id)
    folder = local_path(run.info.artifact_uri)
    if folder is not None:
        if not (folder / path).exists():
            raise MedlightError(f"run {run_id}: no artifact {path!r}")
        return folder / path
    target = Path.cwd() / "mlruns" / "local" / run_id
    target.mkdir(parents=True, exist_ok=True)
    try:
        return Path(client().download_artifacts(run_id, path, str(target)))
    except Exception as error:
        raise MedlightError(f"run {run_id}: artifact {path!r} can't be fetched ({cause(error)})") from error


def best_checkpoint(run_id: str) -> Path:
    """Return a run's best checkpoint as a local file, the very one that the fit wrote.

    Raises: UsageError for an unknown run, or one that never had a checkpoint; MedlightError where the file was altered,
    replaced or removed since the fit ended.
    """
    from medlight.tasks.weight_files import sha256

    with reached():
        run = client().get_run(run_id)
        files = {file.path for file in client().list_artifacts(run_id, str(Path(BEST).parent)) if not file.is_dir}
    recorded = run.data.tags.get(BEST_TAG)
    if BEST not in files:
        if recorded is not None:
            raise MedlightError(f"run {run_id}: its {BEST} is gone; mend: restore it, or fit again")
        raise UsageError(f"run {run_id}: has no {BEST}; mend: name a run of medlight fit")
    file = artifact(run_id, BEST)
    if recorded is not None:
        now = sha256(file)
        if now != recorded:
            raise MedlightError(
                f"run {run_id}: {file} was altered since its digest was recorded ({recorded[:12]}, now {now[:12]}); "
                "mend: restore it, or fit again"
            )
    return file


def deliver_leftovers() -> int:
    """Send what runs of this folder that are no more could not send; returns how many entries still wait.

    One command does it at a time; a server that does not answer is asked once.
    """
    waiting, away = 0, set()
    if not any(journals(spool_dir())):
        return 0
    try:
        with FileLock(spool_dir() / ".lock", timeout=0):
            for journal in journals(spool_dir()):
                spool = Spool.reopened(journal)
                if spool is None:
                    continue
                if spool.uri not in away and not spool.attempt():
                    away.add(spool.uri)
                waiting += spool.pending
    except Timeout:
        pass
    return waiting
