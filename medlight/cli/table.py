"""Tables for a person in a terminal, and the same as lines for a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence

_STYLES = {
    "ok": "green",
    "identical": "green",
    "not-a-volume": "yellow",
    "within tolerance": "yellow",
}  # any other verdict is red


def show(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on standard output; for a pipe, fields with a tab between them. A verdict has a colour."""
    clean = [[printable(text) for text in row] for row in rows]
    if not sys.stdout.isatty():
        for row in [list(columns), *clean]:
            print("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, justify="right" if name == "files" else "left", overflow="fold")
    for row in clean:
        styles = [
            _STYLES.get(text, "red") if name == "verdict" else "" for name, text in zip(columns, row, strict=True)
        ]
        table.add_row(*map(Text, row, styles))
    Console().print(table)


def printable(text: str) -> str:
    """A file's name may hold anything: no control character reaches a terminal, no broken letter a pipe."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
