"""Errors a user can act on. The command line prints each as one line and turns it into an exit code."""

import traceback
from pathlib import Path


class MedlightError(Exception):
    """One line that names the file, key or tag, and the mend. Exit code 1: the work failed."""

    exit_code = 1


class UsageError(MedlightError):
    """The call or the configuration was wrong; nothing was begun but what it took to tell. Exit code 2."""

    exit_code = 2


class InterruptedFitError(MedlightError):
    """A fit was stopped by Ctrl-C or SIGTERM; it can go on from its last checkpoint."""


class CaseError(MedlightError):
    """A case can't be used: a missing partner, another shape, an unknown label value, an unreadable file."""

    def __init__(self, case_id: str, message: str) -> None:
        super().__init__(message)
        self.case_id = case_id


def one_line(error: BaseException) -> str:
    """An exception as one line; the project's own errors speak for themselves."""
    text = " ".join((str(error).strip().splitlines() or [""])[0].split())
    return text if isinstance(error, MedlightError) else f"{type(error).__name__}: {text}".rstrip(": ")


def fault(error: BaseException) -> str:
    """An error that nobody foresaw, by its kind and the last lines of code that it came by.

    What it says may quote a patient's header, and is not repeated.
    """
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    places = " > ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames)
    return f"{type(error).__name__} at {places}, which is a fault of the program"


def needs(extra: str, module: str) -> MedlightError:
    """The error for an optional package that is absent."""
    return UsageError(f"{module} is not installed; mend: pip install 'medlight[{extra}]'")
