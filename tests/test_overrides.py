"""Dotted values on the command line."""

from __future__ import annotations

import pytest

from medlight.config import parse_overrides
from medlight.errors import UsageError


def test_both_ways_of_writing():
    given = ["--a.b=[4, 8]", "--a.lr", "1e-3", "--n", "-1", "--t=null", "--u=x=y", "--v", "true", "--w.0.p=null"]
    assert parse_overrides(given) == [
        ("a.b", [4, 8]),
        ("a.lr", 1e-3),
        ("n", -1),
        ("t", None),
        ("u", "x=y"),
        ("v", True),
        ("w.0.p", None),
    ]
    assert parse_overrides([]) == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["stray"], "stray: not understood; write an override as --dotted.path=VALUE"),
        (["-x=1"], "-x: not understood"),
        (["--a..b=1"], "--a..b: not understood"),
        (["--a.b"], "--a.b: needs a value; write --a.b=VALUE"),
        (["--a.b", "--c.d=1"], "--a.b: needs a value"),
        (["--a.b=[1,"], "--a.b: '[1,' is not a YAML value"),
    ],
)
def test_what_is_not_understood(given, said):
    with pytest.raises(UsageError) as caught:
        parse_overrides(given)
    assert said in str(caught.value)
