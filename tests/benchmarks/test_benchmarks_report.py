"""benchmarks/report.py and plot.py: how what was measured is shown."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from benchmarks import report
from benchmarks.plot import svg
from benchmarks.rows import Row, Table, Verdict

W1 = Row(
    "W1",
    "small <mail>",
    "µs a mail",
    {"guard": 120.4, "smtp-sink": 60.0, "aiosmtpd": 512.0},
    {"guard": {"busy": 0.9}},
    [Verdict("smtp-sink", 2.0, 1.9), Verdict("aiosmtpd", 0.5, 0.23)],
    {"smtp-sink": 2.0, "aiosmtpd": 0.5, "twisted.mail": 0.6},
)
W5 = Row("W5", "refused", "µs a connection", {"guard": 30.0, "smtp-sink": 15.0}, note="none of aiosmtpd")
TABLE = Table("Processor time", ["guard", "smtp-sink", "aiosmtpd"], [W1, W5], ["a note"])


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0.00"), (0.123, "0.12"), (9.876, "9.88"), (12.34, "12.3"), (1234.5, "1,234"), (-0.21, "-0.21")],
)
def test_a_number_has_no_more_digits_than_it_is_worth(value: float, shown: str) -> None:
    assert report.number(value) == shown


def test_the_text_has_each_cell_and_whether_each_bound_is_met() -> None:
    title, _, first, second, *notes = report.text(TABLE).splitlines()
    assert title == "Processor time"
    assert first.split()[:7] == ["W1", "small", "<mail>", "µs", "a", "mail", "120"]
    assert first.endswith(
        "smtp-sink 2.00 of at most 1.9: met; aiosmtpd 0.50 of at most 0.23: MISSED; twisted.mail 0.60"
    )
    assert second.split()[-3:] == ["30.0", "15.0", "-"]
    assert notes == ["W5: none of aiosmtpd", "a note"]


def test_the_markdown_is_a_table_of_equal_rows() -> None:
    rows = [line for line in report.markdown(TABLE).splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {7}
    assert len(rows) == 4


def test_the_json_has_everything() -> None:
    found = json.loads(report.as_json([TABLE], {"rounds": 5}))
    assert found["run"] == {"rounds": 5}
    row = found["tables"][0]["rows"][0]
    assert row["cells"] == W1.cells
    assert row["details"] == W1.details
    assert [(each["what"], each["met"]) for each in row["verdicts"]] == [
        ("smtp-sink", True),
        ("aiosmtpd", False),
    ]


def test_the_summary_names_what_is_missed() -> None:
    assert report.summary([TABLE]) == "1 of 2 bounds are met. Missed: W1 small <mail>, aiosmtpd."
    assert report.summary([]) == "0 of 0 bounds are met."


def test_the_plot_is_svg_with_a_mark_for_each_cell() -> None:
    root = ElementTree.fromstring(svg(TABLE, "smtp-sink"))
    titles = [title.text for title in root.iter("{http://www.w3.org/2000/svg}title")]
    assert "guard: 120 µs a mail, 2.01 times smtp-sink" in titles
    assert sum("times smtp-sink" in (title or "") for title in titles) == 5
    assert "prefers-color-scheme: dark" in svg(TABLE, "smtp-sink")


def test_the_plot_leaves_out_what_has_nothing_to_compare_with() -> None:
    alone = Row("W8", "alone", "µs", {"guard": 1.0})
    assert "W8" not in svg(Table("Processor time", ["guard", "smtp-sink"], [W1, alone]), "smtp-sink")
