"""What a study folder may say, and how it is told what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medlight.errors import UsageError
from medlight.reproduce.expected import Claim, Value, read
from tests.reproduce import folder

VALUE = folder.EXPECTED["expected"][0]


def test_it_is_read(tmp_path: Path) -> None:
    variants = {"slow": "base.yaml", "tuned": {"files": ["base.yaml", "tuned.yaml"], "after": "slow"}}
    entries = [
        {**VALUE, "metric": "auroc", "at_least": True},
        {"claim": "tuned.test/f1>slow.f1"},
        {"claim": "slow.val/loss < 7.5e-1", "source": "s", "reason": "chance"},
    ]
    study = read(folder.write(tmp_path, variants=variants, expected=entries))
    assert study.variants["slow"].files == ("base.yaml",)
    assert study.variants["tuned"].after == "slow"
    assert study.expected == [
        Value("slow", "test/auroc", 0.9, 0.6, "r", "Table 1", True),
        Claim("tuned.test/f1>slow.f1", ("tuned", "test/f1"), ("slow", "test/f1"), ""),
        Claim("slow.val/loss < 7.5e-1", 0.75, ("slow", "val/loss"), "s", "chance"),
    ]
    assert (study.seeds, study.quick) == (2, {"trainer.max_epochs": 1})


def entry(**changes: Any) -> dict[str, Any]:
    return {"expected": [{key: value for key, value in {**VALUE, **changes}.items() if value is not None}]}


BAD = [
    ({"sedes": 3}, "sedes: no such key (did you mean 'seeds'?)"),
    ({"seeds": 0}, "seeds: 0; write a whole number"),
    ({"seeds": True}, "seeds: True; write a whole number"),
    ({"variants": {}}, "variants: expected keys and values"),
    ({"variants": {"slow": []}}, "variants.slow: expected a list of YAML files"),
    ({"variants": {"a.b": ["base.yaml"]}}, "variants.a.b: a variant's name has letters"),
    ({"variants": {"slow": ["bas.yaml"]}}, "variants.slow: no file 'bas.yaml'"),
    ({"variants": {"slow": ["bas.yaml"]}}, "(did you mean 'base.yaml'?)"),
    ({"variants": {"slow": {"files": ["base.yaml"], "aftre": "x"}}}, "variants.slow.aftre: no such key"),
    (
        {"variants": {"slow": {"files": ["base.yaml"], "after": "slwo"}}},
        "variants.slow.after: no variant 'slwo' (did you mean 'slow'?)",
    ),
    ({"variants": {"slow": {"files": ["base.yaml"], "after": "slow"}}}, "goes in a circle (slow -> slow)"),
    ({"expected": []}, "expected: write a list"),
    ({"expected": ["slow"]}, "expected[0]: expected {variant, metric, value, ...}"),
    (entry(variant="other"), "no variant 'other' (there: slow, fast)"),
    (entry(variant="slwo"), "no variant 'slwo' (did you mean 'slow'?)"),
    (entry(variant=None), "expected[0].variant: missing"),
    (entry(metric=None), "expected[0].metric: missing"),
    (entry(value=None), "expected[0].value: missing"),
    (entry(value="high"), "expected[0].value: 'high' is no number"),
    (entry(tolerance=None), "expected[0].tolerance: missing"),
    (entry(tolerance=-0.1), "expected[0].tolerance: -0.1 is below 0"),
    (entry(reason=None), "expected[0].reason: missing"),
    (entry(source=None), "expected[0].source: missing"),
    (entry(at_least="yes"), "expected[0].at_least: 'yes'; write true or false"),
    (entry(tolerence=1), "expected[0].tolerence: no such key (did you mean 'tolerance'?)"),
    ({"expected": [{"claim": "slow.auroc"}]}, "write VARIANT.METRIC > VARIANT.METRIC"),
    ({"expected": [{"claim": "fast.auroc >= slow.auroc"}]}, "write VARIANT.METRIC > VARIANT.METRIC"),
    ({"expected": [{"claim": "fast.auroc > slow.auroc", "source": 3}]}, "expected[0].source: expected text, found 3"),
    ({"expected": [{"claim": "1 > 2"}]}, "names no variant"),
    ({"study": "../../elsewhere"}, "study: '../../elsewhere'; a study's name has letters"),
    ({"study": ".hidden"}, "study: '.hidden'; a study's name has letters"),
    (entry(value=float("nan")), "expected[0].value: nan is no finite number"),
    (entry(tolerance=float("inf")), "expected[0].tolerance: inf is no finite number"),
    ({"expected": [{"claim": "slow.auroc > 1e999"}]}, "expected[0].claim: inf is no finite number"),
    ({"expected": [{"claim": "slow.auroc > slow.test/auroc"}]}, "has the same on both sides"),
    ({"expected": [{"claim": "slow > fast"}]}, "'slow' names no metric"),
    ({"expected": [{"claim": "fsat.auroc > slow.auroc"}]}, "no variant 'fsat' (did you mean 'fast'?)"),
    ({"deviations": "none"}, "deviations: write a list"),
    ({"quick": [1]}, "quick: expected keys and values"),
    ({"study": "\u5b57" * 61}, "only, at most 60"),
    ({"quick": {3: 1}}, "quick.3: no key of a fit; write one as trainer.max_epochs: 1"),
    ({"study": "x" * 61}, "a study's name has letters, digits, spaces, '.', '-' and '_' only, at most 60"),
    ({"variants": {"x" * 61: ["base.yaml"]}}, "a variant's name has letters, digits, - and _ only, at most 60"),
    (
        {"variants": {"slow": {"files": ["base.yaml"], "after": ["slow"]}}},
        "slow.after: expected a variant's name, found",
    ),
    (entry(value=10**400), "expected[0].value: inf is no finite number"),
]


@pytest.mark.parametrize(("changes", "said"), BAD, ids=[said for _, said in BAD])
def test_what_is_wrong_is_one_line_with_the_file(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as error:
        read(folder.write(tmp_path, **changes))
    assert said in str(error.value)
    assert "expected.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    folder.write(tmp_path)
    with pytest.raises(UsageError, match=r"no such study folder \(did you mean 'fakes'\?\)"):
        read(tmp_path / "studies" / "fake")
    with pytest.raises(UsageError, match=r"no expected.yaml in this folder"):
        read(tmp_path / "studies")
