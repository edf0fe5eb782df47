"""Which hyper-parameters differ between runs, under names that a person can read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

ABSENT = "–"
_BOOKKEEPING = {"name", "study", "launch", "tags"}


def differing(params: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """For each run its parameters that are not the same in all of them.

    ``model.init_args.network.class_path`` becomes ``network``; a name keeps as many of its last parts as make it the
    only one. Class paths are cut to the class. A parameter that a run lacks is shown as a dash. Trials of a sweep are
    told apart by what the sweep chose (``space.*``) and not by all that follows from it. A run without any parameter
    (it failed before it had some) makes nothing differ, and has none here.
    """
    known = [run for run in params if run]
    trials = all(any(name.startswith("space.") for name in run) for run in known)
    known = [{n: v for n, v in run.items() if n.startswith("space.") == trials} for run in known]
    full = sorted({name for run in known for name in run if name.split(".")[0] not in _BOOKKEEPING})
    changing = [name for name in full if len({run.get(name) for run in known}) > 1]
    short = shorten(changing)
    found = iter([{short[name]: _value(name, run.get(name)) for name in changing} for run in known])
    return [next(found) if run else {} for run in params]


def shorten(names: Sequence[str]) -> dict[str, str]:
    """Map each dotted name to the shortest tail of it that no other name ends in (``augment.0.p``, not ``0.p``)."""
    parts = {
        name: [p for p in name.split(".") if p not in ("init_args", "class_path", "space")] or [name] for name in names
    }
    found = {}
    for name in names:
        others = [parts[other] for other in names if other != name]
        tails = [parts[name][-size:] for size in range(1, len(parts[name]) + 1)]
        tellable = (t for t in tails if not t[0].isdigit() and all(o[-len(t) :] != t for o in others))
        found[name] = ".".join(next(tellable, [name]))
    return found


def shown(value: str) -> str:
    """A value as a table shows it: a number drawn at random needs no sixteen digits."""
    try:
        return f"{float(value):.4g}" if len(value) > 8 else value
    except ValueError:
        return value


def _value(name: str, value: str | None) -> str:
    if value is None:
        return ABSENT
    return value.rsplit(".", 1)[-1] if name.endswith("class_path") else value
