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


def test_the_markdown_has_the_bounds_and_not_every_multiple() -> None:
    shown = report.markdown(TABLE)
    assert "smtp-sink 2.00 of at most 1.9: met; aiosmtpd 0.50 of at most 0.23: MISSED |" in shown
    assert "twisted.mail" not in shown


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


SVG = "{http://www.w3.org/2000/svg}"


def drawn(table: Table) -> ElementTree.Element:
    return ElementTree.fromstring(svg(table, "smtp-sink", ["guard", "guard on uvloop"], ["aiosmtpd"]))


def test_the_plot_is_svg_with_a_bar_for_each_cell_of_the_guards_and_of_what_they_are_compared_with() -> None:
    titles = [title.text or "" for title in drawn(TABLE).iter(f"{SVG}title")]
    assert [title for title in titles if "times smtp-sink" in title] == [
        # The ratio by which it is judged, which is not that of the medians.
        "guard: 120 µs a mail, 2.00 times smtp-sink",
        "aiosmtpd: 512 µs a mail, 8.53 times smtp-sink",
        "guard: 30.0 µs a connection, 2.00 times smtp-sink",
    ]
    assert "prefers-color-scheme: dark" in svg(TABLE, "smtp-sink", [], [])


def test_the_plot_has_a_stroke_for_each_bound_of_a_guard_that_is_a_multiple() -> None:
    cells = {"guard": 30.0, "guard on uvloop": 20.0, "smtp-sink": 10.0}
    verdicts = [Verdict("smtp-sink", 3.0, 2.0), Verdict("guard on uvloop to smtp-sink", 2.0, 4.0)]
    verdicts.append(Verdict("aiosmtpd", 0.5, 0.2))
    root = drawn(Table("Processor time", list(cells), [Row("W1", "mail", "µs", cells, {}, verdicts)]))
    lines = root.findall(f"{SVG}line")
    grid = {line.get("x1") for line in lines if line.get("class") in ("one", "grid")}
    strokes = [line.get("x1") for line in lines if line.get("class") == "bound"]
    assert len(set(strokes)) == len(strokes) == 2
    # Their bounds are powers of two, as the lines of the grid are.
    assert set(strokes) <= grid


def test_a_guard_that_takes_less_has_its_bar_on_the_other_side() -> None:
    cells = {"guard": 5.0, "aiosmtpd": 20.0, "smtp-sink": 10.0}
    root = drawn(Table("Processor time", list(cells), [Row("W3", "large", "ms", cells)]))
    (one,) = (line.get("x1") for line in root.iter(f"{SVG}line") if line.get("class") == "one")
    less, more = root.findall(f"{SVG}rect")
    assert one is not None
    assert float(less.get("x", "")) + float(less.get("width", "")) == pytest.approx(float(one))
    assert more.get("x") == one


def test_the_plot_leaves_out_what_has_nothing_to_compare_with() -> None:
    alone = Row("W8", "alone", "µs", {"guard": 1.0})
    table = Table("Processor time", ["guard", "smtp-sink"], [W1, alone])
    assert "W8" not in svg(table, "smtp-sink", ["guard"], [])
