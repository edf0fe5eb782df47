"""A progress bar where someone is watching, nothing where no one is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(text: str, total: int) -> Iterator[Callable[[float, float], None]]:
    """Give a function to call with what is done and the total; it draws on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(text, total=total or None)
        yield lambda done, total: shown.update(task, completed=done, total=total)
