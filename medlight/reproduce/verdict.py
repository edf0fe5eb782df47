"""Whether what was published, or claimed, came out.

The rule (also under every table of results):

- Ours is the mean over the seeds, sd their standard deviation (n - 1).
- The 95 % interval is Student's t over the seeds. Where the run kept what a single case needs it is the wider at each
  end of that and a percentile bootstrap over seeds and cases together: each resampling draws the seeds, and one set of
  cases for all of them, with replacement (a bootstrap of few seeds alone is far too narrow, and t knows nothing of the
  cases). Metrics of the whole set (AUROC, accuracy, F1, ECE) are computed anew on each drawn set.
- A published value is *reproduced* where ours lies within its tolerance, *not reproduced* where the whole interval
  lies outside, else *undecided*. One marked "at least" is only spoken against by lower values.
- A claim *holds* where the interval of the difference, paired by seed and case, lies above 0, *fails* where it lies
  below, else *undecided*.
- p is two-sided: Wilcoxon's signed-rank test on the cases' differences averaged over the seeds; for metrics of the
  whole set the bootstrap's share on the far side of 0, doubled; without cases Student's t over the seeds. With cases
  it speaks of these runs, not of what other seeds would give: the verdict goes by the interval.
- *incomplete*: fewer seeds are done than the study asks for. *smoke*: a quick budget shows that it runs, and no more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from medlight.compare.metric import CaseRows, case_values, without_split
from medlight.compare.stats import LEVEL, MINIMUM_CASES, TOLERANCE, signed_rank
from medlight.reproduce.expected import Budget, Claim, Value
from medlight.reproduce.scores import WHOLE_SET, Floats, Score, score

RESAMPLES = 9999
RULE = tuple(" ".join(part.split()) for part in (__doc__ or "").split("\n- ")[1:])
_AT_ONCE = 1000  # resamplings whose weights are held in memory together
Verdict = Literal["reproduced", "not reproduced", "claim holds", "claim fails", "undecided", "incomplete", "smoke"]


@dataclass(frozen=True)
class Measured:
    """What one run gave: metrics by their full name, and its rows of cases.csv for each split."""

    seed: int
    metrics: Mapping[str, float]
    cases: Mapping[str, CaseRows]


@dataclass(frozen=True)
class Sample:
    """A figure over seeds. ``over`` says of what the interval is: seeds and cases, seeds, or nothing."""

    per_seed: dict[int, float]
    mean: float
    sd: float
    low: float
    high: float
    over: str
    cases: int
    p: float | None = None
    test: str = ""


@dataclass(frozen=True)
class Judged:
    """One expectation with what came out; ``sample`` is the difference where a claim compares."""

    entry: Value | Claim
    sample: Sample
    verdict: Verdict
    sides: tuple[Sample, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        written = asdict(self.entry)
        return {
            **written,
            "verdict": self.verdict,
            "ours": asdict(self.sample),
            "sides": [asdict(s) for s in self.sides],
        }


def judge(entry: Value | Claim, runs: Mapping[str, Sequence[Measured]], seeds: int, budget: Budget) -> Judged:
    """Judge one expectation.

    Args:
        entry: what is expected.
        runs: the finished runs of each variant.
        seeds: how many of each the study asks for.
        budget: a quick one gives no verdict.
    """
    if isinstance(entry, Value):
        found = _value_sample(entry, runs)
        verdict = _value_verdict(entry, found)
    else:
        found = _claim_sample(entry, runs)
        verdict = _claim_verdict(found)
    if len(found.per_seed) < seeds:
        verdict = "incomplete"
    sides = tuple(sample(_of(runs, variant, metric), metric) for variant, metric in entry.sides)
    return Judged(entry, found, "smoke" if budget == "quick" else verdict, sides)


def _of(runs: Mapping[str, Sequence[Measured]], variant: str, metric: str) -> list[Measured]:
    """A variant's runs that have the metric, by seed."""
    return sorted((run for run in runs.get(variant, []) if metric in run.metrics), key=lambda run: run.seed)


def _value_sample(entry: Value, runs: Mapping[str, Sequence[Measured]]) -> Sample:
    return sample(_of(runs, entry.variant, entry.metric), entry.metric)


def _value_verdict(entry: Value, ours: Sample) -> Verdict:
    low, high = entry.value - entry.tolerance, math.inf if entry.at_least else entry.value + entry.tolerance
    if low - TOLERANCE <= ours.mean <= high + TOLERANCE:
        return "reproduced"
    if ours.high < low or ours.low > high:  # never where there is no interval (nan)
        return "not reproduced"
    return "undecided"


def _claim_verdict(difference: Sample) -> Verdict:
    if difference.low > 0:
        return "claim holds"
    return "claim fails" if difference.high < 0 else "undecided"


def _claim_sample(claim: Claim, runs: Mapping[str, Sequence[Measured]]) -> Sample:
    greater, smaller = claim.greater, claim.smaller
    if isinstance(greater, float) or isinstance(smaller, float):
        side = smaller if isinstance(greater, float) else greater
        assert not isinstance(side, float)
        number, sign = (greater, -1.0) if isinstance(greater, float) else (smaller, 1.0)
        assert isinstance(number, float)
        return difference(_of(runs, *side), [], side[1], side[1], number, sign)
    ours, others = _of(runs, *greater), _of(runs, *smaller)
    both = {run.seed for run in ours} & {run.seed for run in others}
    ours, others = [r for r in ours if r.seed in both], [r for r in others if r.seed in both]
    return difference(ours, others, greater[1], smaller[1])


def sample(runs: Sequence[Measured], metric: str) -> Sample:
    """A metric over the seeds, with its interval."""
    per_seed = {run.seed: float(run.metrics[metric]) for run in runs}
    cases = _common(runs, metric)
    scores = _scores(runs, metric, cases)
    return _sample(per_seed, scores, cases)


def difference(
    runs: Sequence[Measured],
    others: Sequence[Measured],
    metric: str,
    other_metric: str,
    number: float = 0.0,
    sign: float = 1.0,
) -> Sample:
    """``runs`` minus ``others`` (the same seeds), or, without others, sign x (runs - number), with interval and p."""
    if others:
        pairs = list(zip(runs, others, strict=True))
        per_seed = {a.seed: float(a.metrics[metric]) - float(b.metrics[other_metric]) for a, b in pairs}
    else:
        per_seed = {run.seed: sign * (float(run.metrics[metric]) - number) for run in runs}
    cases = sorted(set(_common(runs, metric)) & set(_common(others, other_metric))) if others else _common(runs, metric)
    ours, theirs = _scores(runs, metric, cases), _scores(others, other_metric, cases)
    functions: list[Score] = []
    if ours and theirs:
        functions = [_less(a, b) for a, b in zip(ours, theirs, strict=True)]
    elif ours and not others:
        functions = [_beyond(a, number, sign) for a in ours]
    ranked = functions and not {without_split(metric), without_split(other_metric)} & set(WHOLE_SET)
    each = _case_differences(runs, others, metric, other_metric, cases, number, sign) if ranked else None
    return _sample(per_seed, functions, cases, each, tested=True)


def _less(ours: Score, theirs: Score) -> Score:
    return lambda weights: ours(weights) - theirs(weights)


def _beyond(ours: Score, number: float, sign: float) -> Score:
    return lambda weights: sign * (ours(weights) - number)


def _case_differences(
    runs: Sequence[Measured],
    others: Sequence[Measured],
    metric: str,
    other_metric: str,
    cases: list[str],
    number: float,
    sign: float,
) -> Floats:
    """The difference of each case, averaged over the seeds (those in which it has a value)."""
    ours = np.array([_per_case(run, metric, cases) for run in runs])
    theirs = np.array([_per_case(run, other_metric, cases) for run in others]) if others else number
    differences = sign * (ours - theirs)
    known = np.isfinite(differences)
    count = known.sum(axis=0)
    return np.where(known, differences, 0).sum(axis=0)[count > 0] / count[count > 0]


def _per_case(run: Measured, metric: str, cases: list[str]) -> list[float]:
    values = case_values(run.cases.get(metric.split("/")[0], {}), without_split(metric))
    return [values.get(case, math.nan) for case in cases]


def _common(runs: Sequence[Measured], metric: str) -> list[str]:
    """The cases that every run has, if that is enough of them to resample."""
    tables = [set(run.cases.get(metric.split("/")[0], {})) for run in runs]
    common = set.intersection(*tables) if tables else set()
    same = all(table == common for table in tables)
    return sorted(common) if same and len(common) >= MINIMUM_CASES else []


def _scores(runs: Sequence[Measured], metric: str, cases: list[str]) -> list[Score]:
    """Each run's metric as a function of weights over the cases; none where a run does not have it per case."""
    if not cases:
        return []
    found = [score(run.cases[metric.split("/")[0]], without_split(metric), cases) for run in runs]
    return [each for each in found if each is not None] if all(each is not None for each in found) else []


def _sample(
    per_seed: dict[int, float],
    functions: Sequence[Score],
    cases: list[str],
    each: Floats | None = None,
    tested: bool = False,
) -> Sample:
    values = np.array(list(per_seed.values()))
    if not len(values):
        return Sample({}, math.nan, math.nan, math.nan, math.nan, "nothing", 0)
    mean, sd = float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else math.nan
    if not functions:
        low, high = _student(values)
        over = "nothing" if math.isnan(low) else "seeds"
        p, test = (_student_p(values), "t over seeds") if tested and over == "seeds" else (None, "")
        return Sample(per_seed, mean, sd, low, high, over, 0, p, test)
    drawn = resampled(functions, len(cases))
    low, high = (float(end) for end in np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    if len(values) > 1:
        ends = _student(values)
        low, high = min(low, ends[0]), max(high, ends[1])
    p, test = None, ""
    if tested:
        p, test = (_bootstrap_p(drawn), "paired bootstrap") if each is None else (signed_rank(each), "signed rank")
    over = "seeds and cases" if len(values) > 1 else "cases"
    return Sample(per_seed, mean, sd, low, high, over, len(cases), p, test)


def resampled(functions: Sequence[Score], cases: int, seed: int = 0) -> Floats:
    """Values (RESAMPLES,) of the mean over seeds, each with seeds and cases drawn anew; one set of cases for all."""
    random = np.random.default_rng(seed)
    found = []
    for start in range(0, RESAMPLES, _AT_ONCE):
        count = min(_AT_ONCE, RESAMPLES - start)
        weights = random.multinomial(cases, np.full(cases, 1 / cases), size=count).astype(np.float64)
        seeds = random.multinomial(len(functions), np.full(len(functions), 1 / len(functions)), size=count)
        values = np.stack([function(weights) for function in functions], axis=1)
        found.append((seeds * np.where(seeds > 0, values, 0.0)).sum(axis=1) / len(functions))
    return np.concatenate(found)


def _bootstrap_p(drawn: Floats) -> float:
    finite = drawn[np.isfinite(drawn)]
    side = min(int((finite <= 0).sum()), int((finite >= 0).sum()))
    return float(min(1.0, 2 * (side + 1) / (len(finite) + 1)))


def _student(values: Floats) -> tuple[float, float]:
    from scipy.stats import t

    if len(values) < 2:
        return math.nan, math.nan
    half = float(t.ppf((1 + LEVEL) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return float(values.mean()) - half, float(values.mean()) + half


def _student_p(values: Floats) -> float | None:
    from scipy.stats import ttest_1samp

    if np.ptp(values) <= TOLERANCE:
        return None
    return float(ttest_1samp(values, 0.0).pvalue)
