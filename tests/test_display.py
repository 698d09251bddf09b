from __future__ import annotations

import dataclasses
from html.parser import HTMLParser
from typing import ClassVar

import pytest
import torch

from common.display import Display, Displayed, count, duration, share
from common.latency import measure_latency
from common.network import profile
from common.notebook.config import ClassifierConfig
from common.planning import Fixed, plan_ranks
from tests.networks import tiny_cnn


class Cells(HTMLParser):
    """The texts of a table's cells, and whether every tag is closed."""

    void: ClassVar = {"br"}

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        (count(11_181_642), "11.18 M"),
        (count(1_250), "1.25 K"),
        (count(148_050_944_000), "148.05 G"),
        (count(999), "999"),
        (count(0), "0"),
        (share(1, 8), "12.5%"),
        (share(1, 0), "-"),
        (duration(0.00461, 0.0002), "4.6 ms ± 0.2"),
        (duration(0.1234, 0.056), "123 ms ± 56"),
        (duration(0.000123), "0.12 ms"),
        (duration(0.0000123), "0.012 ms"),
    ],
)
def test_numbers_have_units(shown: str, wanted: str) -> None:
    assert shown == wanted


def test_text_and_table_hold_the_same_cells() -> None:
    table = Display("A <title>", ("name", "size"), [("a & b", "1.00 M"), ("c", "-")], ("total", "1.00 M"), ["A note."])
    assert str(table).splitlines() == [
        "A <title>",
        "name      size",
        "------  ------",
        "a & b   1.00 M",
        "c            -",
        "total   1.00 M",
        "A note.",
    ]
    html = table._repr_html_()
    assert Cells(html).rows == [["name", "size"], ["a & b", "1.00 M"], ["c", "-"], ["total", "1.00 M"]]
    assert "A &lt;title&gt;" in html
    assert "<script" not in html


def test_nothing_but_a_title_is_one_line() -> None:
    assert str(Display("nothing")) == "nothing"
    assert "<table" not in Display("nothing")._repr_html_()


def test_what_people_print_is_a_table() -> None:
    model, x = tiny_cnn(width=32).eval(), torch.randn(1, 3, 12, 12)
    plan = plan_ranks(model, x, "svd", Fixed(4))
    counted, latency = profile(model, x), measure_latency(model, x, baseline=model)
    for value in (plan, counted, latency, ClassifierConfig(trials=3)):
        assert isinstance(value, Displayed)
        assert str(value) == value.display().text()
        assert len(Cells(value._repr_html_()).rows) > 1
    assert str(plan).startswith("svd by fixed (ranks=4): ")
    rows = {row[0]: row[1:] for row in plan.display().rows}
    assert {
        name: (layer.method or "dense", "x".join(map(str, layer.ranks))) for name, layer in plan.layers.items()
    } == {name: tuple(row[:2]) for name, row in rows.items()}
    assert counted.display().total == ("total", count(counted.params), "", count(counted.macs), "")
    assert "trials" in {row[0] for row in ClassifierConfig(trials=3).display().rows}
    assert [row[1] for row in latency.display().rows] == [
        duration(latency.median_s, latency.iqr_s / 2),
        duration(latency.baseline_median_s or 0.0, (latency.baseline_iqr_s or 0.0) / 2),
    ]


def test_a_profile_leaves_nothing_out() -> None:
    model = tiny_cnn(width=32)
    found = profile(model, torch.randn(1, 3, 12, 12))
    named = [row[0] for row in found.display().rows]
    assert [name for name, layer in found.layers.items() if layer.macs] == [n for n in named if "others" not in n]
    uncounted = dataclasses.replace(found, uncounted={"aten::odd": 3})
    assert "aten::odd, run 3 times, is not counted" in str(uncounted)


def test_a_password_is_not_shown() -> None:
    config = dataclasses.replace(ClassifierConfig(), seed=3)
    assert "storage" not in str(config)
