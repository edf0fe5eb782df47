"""The page: self-contained, well formed, nothing that a name could break."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

from medlight.compare import plots
from medlight.compare.html import page, summary_page
from medlight.compare.plots import brief, labels
from medlight.compare.records import Record, Selection
from medlight.compare.summary import summary
from medlight.compare.table import Comparison, Row, compare
from tests.compare.recorded import STEPS, dice_cases, dice_curves, spec

EVIL = "<script>alert('x')</script> & \"quotes\" $HOME ${x}"


def record(name: str, level: float, *, state: str = "complete", network: str = "UNet", rate: float = 1e-3) -> Record:
    curves = {key: list(zip(STEPS, line, strict=True)) for key, line in dice_curves(level).items()}
    cases = {"val": {c: {k: float(v) for k, v in row.items()} for c, row in dice_cases(level).items()}}
    params = {key: str(value) for key, value in spec(network, "[4, 8]", rate).items()}
    metrics = {key: line[2] for key, line in dice_curves(level).items()}
    return Record(
        name, name, state, params=params, metrics=metrics, monitor="val/dice", mode="max", curves=curves, cases=cases
    )


def comparison(*records: Record) -> Comparison:
    return compare(Selection(list(records), ["a sweep"]))


class Checker(HTMLParser):
    """Follows the tags: what is opened is closed, and nothing is fetched."""

    VOID = ("meta", "br", "wbr", "img", "hr", "input", "link")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.fetched: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag, attrs):
        self.note(attrs)
        self.scripts += tag == "script"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.note(attrs)

    def note(self, attrs):
        for key, value in attrs:
            if key == "id":
                self.ids.append(value)
            if key.split(":")[-1] in ("href", "src", "srcset", "data", "action") and not value.startswith("#"):
                self.fetched.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert checker.fetched == []
    assert len(set(checker.ids)) == len(checker.ids)
    assert checker.scripts == 1
    assert not re.search(r"@import|url\((?!#)|\bnan\b", text)
    assert not re.findall(r"url\(#(?!cases-|curves-|parameters-)", text)
    return checker


def test_a_sweep_page_has_its_three_plots_and_fetches_nothing():
    runs = [
        record(f"run{i}", 0.8 + i / 100, network=n, rate=10.0**-i) for i, n in enumerate(["UNet", "DynUNet", "VNet"])
    ]
    text = page(comparison(*runs, record("stopped", 0.5, state="pruned")))
    check(text)
    pictures = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(pictures) == 3
    for picture in pictures:
        ET.fromstring(picture)
        assert "currentColor" in picture
        assert "#010203" not in picture


def test_a_run_has_one_colour_in_all_plots():
    runs = [record(f"run{i}", 0.8 + i / 100, network=n) for i, n in enumerate(["UNet", "DynUNet", "VNet"])]
    found = comparison(*runs)
    own = plots.colours(found)
    assert len(set(own.values())) == 3
    for picture in (plots.distribution(found), plots.curves(found), plots.parameters(found)):
        assert all(colour in picture for colour in own.values())
    many = comparison(*[record(f"run{i}", 0.8 + i / 100) for i in range(12)])
    assert len(set(plots.colours(many).values())) == 2


def test_curves_tell_dashed_only_where_something_is_and_mark_few_points():
    whole, cut = record("a", 0.8), record("b", 0.7, state="pruned")
    assert "dashed" not in plots.curves(comparison(whole, record("c", 0.6)))
    assert "dashed" in plots.curves(comparison(whole, cut))
    cut.curves["val/dice"][1:] = []  # a single point is seen too
    few = plots.curves(comparison(whole, cut))
    assert len(re.findall(r"<use ", few)) > len(re.findall(r"<use ", plots.curves(comparison(long("a"), long("b")))))


def long(name: str) -> Record:
    run = record(name, 0.8)
    run.curves["val/dice"] = [(step, 0.5 + step / 1000) for step in range(100)]
    return run


def test_names_are_text_and_never_markup():
    text = page(comparison(record(EVIL, 0.8), record("plain", 0.7)))
    check(text)
    assert "alert('x')</script>" not in text.replace("&#x27;", "'")
    assert "$HOME ${x}" in text  # the template leaves what is not its own


def test_no_plot_without_something_to_show():
    bare = [Record(name, name, "complete", metrics={"val/dice": 0.5}, monitor="val/dice") for name in "ab"]
    text = page(comparison(*bare))
    check(text)
    assert "<svg" not in text
    assert "no score of a single case" in text


def test_values_that_are_not_finite_stay_out_of_the_page():
    odd = record("odd", 0.7)
    odd.metrics["val/hd95"] = math.nan
    odd.curves["val/dice"][0] = (10, math.nan)
    check(page(comparison(odd, record("other", 0.8))))


def test_one_run():
    run = record(EVIL, 0.8)
    text = summary_page(run, summary(run))
    check(text)
    assert "dice/<wbr>" not in text
    assert "hippocampus_004" in text


def test_the_same_comparison_gives_the_same_page():
    runs = [record("a", 0.8), record("b", 0.7)]
    assert page(comparison(*runs)) == page(comparison(*runs))


def test_long_names_are_cut_in_the_middle_beside_plots():
    assert brief("short") == "short"
    assert brief("a" * 20 + "b" * 20, 11) == "aaaaa…bbbbb"
    same = [Row(Record("1234567890", "x", "complete"), {}, 0.1), Row(Record("abcdefghij", "x", "complete"), {}, 0.1)]
    assert labels(same) == ["x 12345678", "x abcdefgh"]
