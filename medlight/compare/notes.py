"""What a reader must know before believing a comparison."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from medlight.compare.metric import Metric
from medlight.compare.stats import MINIMUM_CASES, RESAMPLES

NO_INTERVAL = f"No interval (–) over fewer than {MINIMUM_CASES} cases: so few say too little of others."


def notes(
    metric: Metric,
    *,
    case_ids: list[AbstractSet[str]],
    alternatives: str,
    common: int,
    tests: int,
    listed: int,
    complete: bool,
    fewest: int | None = None,
) -> list[str]:
    """Sentences under the table.

    Parameters
    ----------
    metric:
        The metric compared.
    case_ids:
        For each compared run the cases it has a value for (none: not kept per case).
    alternatives:
        Metrics that every run has per case, for the reader whose choice is not one of them.
    common:
        How many cases all of those share.
    tests:
        How many p values the table has.
    listed:
        How many runs are only listed, because they did not run to their end.
    complete:
        Whether the compared runs did.
    fewest:
        The smallest number of cases that a mean or a difference of the table is over.
    """
    runs = len(case_ids)
    kept = [ids for ids in case_ids if ids]
    found = _different_cases(kept, common)
    if kept:
        found.append(f"Mean over the cases with a 95 % interval (bootstrap over cases, BCa, {RESAMPLES} resamples).")
        found += [NO_INTERVAL] if fewest is not None and fewest < MINIMUM_CASES else []
    elif runs > 1:
        found.append(
            f"{metric.base} is no score of a single case: no interval and no test, ranked by the value each run logged"
            f"{f' (--metric {alternatives} has both)' if alternatives else ''}."
        )
    if tests:
        found.append(
            "Difference and p: each run against the best one on the same cases; two-sided Wilcoxon signed-rank test, "
            f"zero differences split, Holm-corrected over {_count(tests, 'comparison')}."
        )
    if listed:
        found.append(
            f"{_count(listed, 'run')} did not run to the end and {'is' if listed == 1 else 'are'} only listed."
        )
    if not complete:
        found.append("None of these runs is complete: the figures are of what they have recorded so far.")
    found.append(_selection(metric, runs))
    if tests:
        found.append("The test speaks of other cases, not of another training seed: repeat with seeds for that.")
    return found


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _different_cases(kept: list[AbstractSet[str]], common: int) -> list[str]:
    if len({frozenset(ids) for ids in kept}) < 2:
        return []
    if not common:
        return ["The runs share no case: each mean is over the run's own cases, and nothing is paired."]
    sizes = sorted({len(ids) for ids in kept})
    spread = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else f"{sizes[0]} each"
    return [f"The runs were measured on different cases: compared on the {common} that all have (of {spread})."]


def _selection(metric: Metric, runs: int) -> str:
    if metric.split == "test":
        return "Test cases chose no epoch and no run; to pick a winner from this table would turn them into validation."
    choice = "the best epoch was" if runs < 2 else "each run's best epoch, and the best run, were"
    return (
        f"Optimistic: {choice} chosen on these same validation cases. "
        "Judge the chosen run on cases that took no part (medlight test)."
    )
