"""What a command takes for a bundle: a folder, or a run that was exported."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from medlight.errors import MedlightError, UsageError

if TYPE_CHECKING:
    from medlight.deploy.bundle import Bundle

HELP = "a bundle folder, or a run (or sweep) that was exported"
_THREADS = 64  # may be asked for on any machine


def bundle_of(text: str) -> Bundle:
    """Load a bundle folder, or the bundle of a run (of a sweep: of its best trial)."""
    from medlight.deploy.bundle import Bundle

    try:
        if Path(text).exists():
            return Bundle.load(Path(text))
    except OSError as error:
        raise UsageError(
            f"{error.filename or text}: can't be read ({error.strerror}); mend: make it readable, or name another"
        ) from None
    import logging

    try:
        from medlight.tracking import store
    except ModuleNotFoundError as error:  # a machine that only predicts, or a package that is not ours to miss
        if (error.name or "medlight").partition(".")[0] == "medlight":
            raise
        mend = "mend: name a folder that export wrote, or pip install medlight with all that it depends on"
        why = f"and runs can't be looked up, for {error.name} is not installed"
        raise UsageError(f"{text}: no such bundle folder, {why}; {mend}") from None

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        found = store.find_run(text)
    except UsageError as error:
        raise UsageError(f"{text}: no such bundle folder, and {error}") from None
    if found.data.tags.get("medlight.kind") == "sweep":
        found = store.find_run(found.data.tags.get("medlight.best_run", "").split(",")[0] or found.info.run_id)
    run_id = str(found.info.run_id)
    try:
        return Bundle.load(store.artifact(run_id, "bundle"))
    except MedlightError as error:
        raise UsageError(f"run {text} has no bundle ({error}); mend: medlight export {run_id}") from None


def check_runtime(bundle: Bundle, name: str | None) -> None:
    """Raise UsageError for a ``--runtime`` that the bundle has no model for, or that is not installed here."""
    if name:
        from medlight.deploy.runtime.choice import asked_for

        asked_for(bundle, name)


def check_threads(count: int | None) -> None:
    """Raise UsageError for a number of threads that can't be."""
    if count is not None and count < 1:
        raise UsageError(f"--threads {count}: at least 1; leave it out for one a CPU")
    most = max(os.cpu_count() or 1, _THREADS)  # a runtime takes memory for each: thousands take all there is
    if count is not None and count > most:
        raise UsageError(f"--threads {count}: at most {most}; leave it out for one a CPU")
