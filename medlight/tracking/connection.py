"""Reaching the tracking store: an SQLite file in this folder, or the server that ``MLFLOW_TRACKING_URI`` names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from medlight.errors import MedlightError, UsageError


def tracking_uri() -> str:
    """Return ``MLFLOW_TRACKING_URI``, else the SQLite file ``mlruns/mlflow.db`` of the current folder.

    Raises: UsageError for a plain folder (MLflow 3.13 and newer refuse to write there).
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlruns' / 'mlflow.db'}"
    if "://" not in uri or uri.startswith("file:"):
        raise UsageError(f"MLFLOW_TRACKING_URI={uri}: MLflow keeps no runs in plain folders; use sqlite:///FILE.db")
    return uri


def client() -> MlflowClient:
    """Return a client of the tracking store; its tables are created by one process at a time."""
    return client_of(tracking_uri())


@cache
def client_of(uri: str) -> MlflowClient:
    """Return the client of a store (one a process)."""
    with reached(), creation(uri):
        return MlflowClient(uri)


def masked(uri: str) -> str:
    """Return an address without the password in it."""
    return re.sub(r"://[^/@]*@", "://", uri)


@contextmanager
def reached() -> Iterator[None]:
    """Turn whatever goes wrong on the way to the store into one line that names it and the mend."""
    try:
        yield
    except MedlightError:
        raise
    except Exception as error:
        if isinstance(error, MlflowException) and error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise UsageError(f"not in the tracking store {masked(tracking_uri())}: {error.message}") from error
        where = masked(os.environ.get("MLFLOW_TRACKING_URI") or "mlruns/mlflow.db")
        mend = "start the server, or unset MLFLOW_TRACKING_URI to keep runs in ./mlruns"
        raise MedlightError(f"the tracking store {where} can't be used ({cause(error)}); {mend}") from error


def cause(error: BaseException) -> str:
    """Return the last words of a chain of errors, in one short line."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__


@contextmanager
def creation(uri: str) -> Iterator[None]:
    """Hold the lock under which tables and experiments are made (racing first starts crash MLflow's migrations)."""
    if uri.startswith("http"):
        yield
        return
    file = sqlite_file(uri)
    lock = file.with_name(f".{file.name}.lock") if file else Path.cwd() / "mlruns" / ".mlflow.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock, timeout=120):
        yield


def sqlite_file(uri: str) -> Path | None:
    """Return the file of an SQLite store, None for any other."""
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None
