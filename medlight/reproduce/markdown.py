"""Results as Markdown: the table, what speaks for and against it, and how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medlight.compare.text import NONE, number
from medlight.reproduce.verdict import RULE

Row = Mapping[str, Any]
HEAD = ("expected", "published", "ours, mean ± sd", "95 % interval", "p", "verdict")


def markdown(results: Row) -> str:
    """Return results.md."""
    lines = [f"# {results['study']}: expected and found", ""]
    lines += ["\n\n".join(text for text in (results["paper"], results["source"]) if text)]
    if results["budget"] == "quick":
        lines += [
            "",
            "A smoke run with the quick budget: it shows that the study runs, and says nothing of its figures.",
        ]
    lines += ["", *table(HEAD, [cells(row) for row in results["verdicts"]]), ""]
    lines += _reasons(results["verdicts"])
    if results["deviations"]:
        lines += ["", "## Deviations from the paper", "", *(f"- {text}" for text in results["deviations"])]
    lines += ["", "## Runs", "", *_runs(results["runs"])]
    lines += ["", "## How it was made", "", f"    {results['command']}", "", *_made(results)]
    lines += ["", "## The rule", "", *(f"- {text}" for text in RULE)]
    return "\n".join(lines) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    clean = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *clean)]


def cells(row: Row) -> list[str]:
    """One expectation in the columns of ``HEAD``."""
    ours = row["ours"]
    return [what(row), published(row), mean_sd(ours), interval(ours), p_value(ours), verdict(row)]


def what(row: Row) -> str:
    """What is expected: ``breast test/auroc``, or the claim."""
    return str(row["text"]) if "text" in row else f"{row['variant']} {row['metric']}"


def minutes(run: Row) -> str:
    """How long a run took, all its parts together: ``6.4``."""
    return f"{run['minutes']:.1f}" if "minutes" in run else NONE


def published(row: Row) -> str:
    """``0.901 ± 0.02`` of a value, ``difference > 0`` of a claim."""
    if "text" in row:
        return "difference > 0"
    text = f"{row['value']:g} {'-' if row['at_least'] else '±'} {row['tolerance']:g}"
    return f"at least {text}" if row["at_least"] else text


def mean_sd(ours: Row) -> str:
    """``0.9012 ± 0.0051 (3 seeds)``."""
    count = len(ours["per_seed"])
    if not count:
        return NONE
    spread = f" ± {number(ours['sd'])}" if ours["sd"] is not None else ""
    return f"{number(ours['mean'])}{spread} ({counted(count)})"


def counted(seeds: int) -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{seeds} seed{'' if seeds == 1 else 's'}"


def interval(ours: Row) -> str:
    """The ends of the interval, and over what it is."""
    if ours["low"] is None:
        return NONE
    cases = f"{ours['cases']} " if ours["cases"] else ""
    over = ours["over"].replace("cases", f"{cases}cases")
    return f"{number(ours['low'])} to {number(ours['high'])} over {over}"


def p_value(ours: Row) -> str:
    """P with its test."""
    if ours["p"] is None:
        return NONE
    return f"{'< 0.0001' if ours['p'] < 0.0001 else format(ours['p'], '.4f')} ({ours['test']})"


def verdict(row: Row) -> str:
    """The verdict, as bold as it is."""
    return f"**{row['verdict']}**" if row["verdict"] not in ("smoke", "incomplete") else str(row["verdict"])


def _reasons(verdicts: Sequence[Row]) -> list[str]:
    """Source and reason of each expectation, and both sides of a claim."""
    lines = []
    for row in verdicts:
        parts = [f"{side[0]} {side[1]} {mean_sd(found)}" for side, found in sides(row)] if "text" in row else []
        if "text" not in row:
            seeds = ", ".join(number(value) for value in row["ours"]["per_seed"].values())
            parts += [f"by seed {seeds}"] if seeds else []
        parts += [f"source: {row['source']}"] if row["source"] else []
        if row["reason"]:
            parts.append(f"{'reason' if 'text' in row else 'tolerance'}: {row['reason']}")
        lines.append(f"- {what(row)}: {'; '.join(part.rstrip('.') for part in parts)}.")
    return lines


def sides(row: Row) -> list[tuple[Any, Row]]:
    """The two sides of a claim that were measured, with their figures."""
    named = [side for side in (row["greater"], row["smaller"]) if isinstance(side, (list, tuple))]
    return list(zip(named, row["sides"], strict=True))


def _runs(runs: Sequence[Row]) -> list[str]:
    names = sorted({name for run in runs for name in run.get("figures", {})})
    rows = []
    for run in runs:
        figures = [number(run["figures"].get(name)) if run.get("figures") else NONE for name in names]
        state = f"{run['state']}: {run['reason']}" if run.get("reason") else run["state"]
        rows.append(
            [f"{run['variant']}-seed{run['seed']}", state, run.get("run_id", NONE)[:12], minutes(run), *figures]
        )
    return table(("run", "state", "MLflow run", "minutes", *names), rows)


def _made(results: Row) -> list[str]:
    versions = ", ".join(f"{name} {text}" for name, text in results["versions"].items())
    machine = results["hardware"]
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    commit = f"commit {results['commit']}{' with uncommitted changes' if results['uncommitted'] else ''}"
    return [
        f"- {results['date']}, {results['state']}, {counted(results['seeds'])}, budget {results['budget']}",
        f"- {commit if results['commit'] else 'no commit'}, code digest {results['code_digest'][:12]}",
        f"- {versions}",
        f"- {machine['cpu']}, {machine['usable_cores']} cores used, {machine['ram_gb']} GB, {gpus}",
    ]
