from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from medlight.deploy.parity import CaseParity, _figures, recorded_name
from medlight.prepare.case import Case

NAMED = Case("DOE_JOHN", {}, private=True)

SCORES = st.floats(0, 1, width=16)


def rows_of(targets: list[int], torch: np.ndarray, model: np.ndarray) -> list[CaseParity]:
    return [
        CaseParity("c", 0.1, 0.05, 1.0, target=target, by_torch=tuple(one.tolist()), by_bundle=tuple(other.tolist()))
        for target, one, other in zip(targets, torch, model, strict=True)
    ]


@settings(deadline=None, max_examples=30)
@given(data=st.data(), classes=st.integers(2, 4), count=st.integers(2, 30))
def test_a_classification_is_judged_by_its_auroc(data, classes: int, count: int) -> None:
    targets = data.draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count))
    draw = st.lists(st.lists(SCORES, min_size=classes, max_size=classes), min_size=count, max_size=count)
    torch, model = np.array(data.draw(draw)), np.array(data.draw(draw))
    figures = _figures("int8", rows_of(targets, torch, model), 0)
    wanted = []
    for index in range(classes):
        inside = np.array(targets) == index
        if inside.any() and not inside.all():
            pairs = inside.sum() * (~inside).sum()
            wanted.append([mannwhitneyu(s[inside, index], s[~inside, index])[0] / pairs for s in (torch, model)])
    if not wanted:
        assert figures["auroc"] is None
        assert figures["auroc_diff"] is None
        assert figures["score"] == "probability"
        return
    means = np.mean(wanted, axis=0)
    assert list(figures["auroc"].values()) == pytest.approx(means.tolist(), abs=1e-5)
    assert figures["score"] == "auroc"
    assert figures["score_diff"] == pytest.approx(np.abs(np.diff(wanted)).max(), abs=1e-5)
    assert figures["auroc_diff"] == figures["score_diff"]
    assert _figures("fp32", rows_of(targets, torch, model), 0)["auroc_diff"] == figures["auroc_diff"]
    assert figures["passed"] == (figures["score_diff"] <= 0.005)


def test_a_case_goes_by_what_runs_call_it_and_never_by_its_file() -> None:
    assert recorded_name(NAMED, {"DOE_JOHN": "case-0123456789"}) == "case-0123456789"
    assert "DOE" not in recorded_name(NAMED, {})
    assert recorded_name(NAMED, {}) != recorded_name(Case("DOE_JANE", {}, private=True), {})
    assert recorded_name(Case("prostate-7", {}), {}) == "prostate-7"
