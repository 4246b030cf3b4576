"""The headlines say what they say at any size, and the same every time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import table
from benchmarks.headlines import abandoned, ceiling, hops, retries
from benchmarks.headlines.ceiling import STEPS
from benchmarks.sheet import Sheet, text, write
from langgraph_deadline.testing import run_virtual


def test_retries_are_64_and_81_without_a_limit_and_none_is_late_with_a_deadline() -> (
    None
):
    """Both counts of the field are real; one deadline ends both in time."""
    (sheet,) = retries.measure(quick=True)
    rows = {(row["attempts by design"], row["limit"]): row for row in sheet.rows}
    late = f"attempts after {retries.BUDGET:g} s"
    free, _, _, ours = retries.LIMITS
    for stack in ("64", "81"):
        assert rows[stack, free]["attempts"] == int(stack)
        assert rows[stack, ours][late] == 0
        assert rows[stack, ours]["seconds"] <= retries.BUDGET
        assert "overloaded" in str(rows[stack, ours]["the caller gets"])


def test_a_time_out_of_each_layer_goes_on_after_the_caller_has_given_up() -> None:
    """Each retry starts the time-out anew."""
    (sheet,) = retries.measure(quick=True)
    _, layers, _, _ = retries.LIMITS
    rows = [row for row in sheet.rows if row["limit"] == layers]
    assert all(row["seconds"] > 3 * retries.BUDGET for row in rows)
    assert all(row[f"attempts after {retries.BUDGET:g} s"] > 10 for row in rows)


def test_one_deadline_lets_more_hops_complete_than_a_time_out_of_each() -> None:
    """Time that one hop does not need is there for the next."""
    sheet = hops.table(25)
    rows = {(row["hops"], row["limit"]): row for row in sheet.rows}
    _, each, _, _, ours = hops.LIMITS
    for kind in hops.CORRELATIONS:
        share = "complete in 5 s"
        assert rows[kind, ours][share] > rows[kind, each][share]
        assert rows[kind, ours]["answered in 5 s"] == 1.0
        assert rows[kind, ours]["time to spare"] == 0.0


def test_nothing_is_spent_on_abandoned_runs() -> None:
    """However the caller leaves, no token is generated later and no call begins."""
    rows = {row["the run is stopped by"]: row for row in abandoned.table(4).rows}
    for name, row in rows.items():
        if name.startswith("ours"):
            assert row["after the caller left"] == row["model calls begun after"] == 0
    for name in ("no cancellation", "at node boundaries"):
        assert rows[f"LangGraph: {name}"]["after the caller left"] > 0


def test_every_run_answers_under_the_ceiling() -> None:
    """Steps degrade where there is no time; the run always answers."""
    sheet, steps = ceiling.tables(40)
    rows = {row["limit"]: row for row in sheet.rows}
    ours = rows[ceiling.OURS]
    assert ours["no answer"] == ours["later than 45 s"] == 0.0
    assert ours["longest"] <= ceiling.CEILING
    assert ours["degraded"] > 0.0
    assert ours["complete"] > rows["7.5 s for each step"]["complete"]
    assert rows["45 s for each step"]["later than 45 s"] > 0.0
    assert rows["`asyncio.wait_for`, 45 s"]["longest"] <= ceiling.CEILING
    for step in steps.rows:
        ends = [value for key, value in step.items() if key in list(step)[-4:]]
        assert abs(sum(ends) - 1.0) < 1e-9


def test_a_step_that_was_handled_is_not_the_last() -> None:
    """LangGraph's error handlers put something in, and the other steps are done."""
    run = ceiling.timed_out(dict.fromkeys(ceiling.STEPS, 10.0), handled=True)
    quick = dict.fromkeys(ceiling.STEPS, 1.0)
    latencies = [{**quick, "search": 60.0}, {**quick, "polish": 60.0}]
    latencies.append({**quick, "draft": 60.0})

    async def main() -> list[Any]:
        graph = run(latencies)
        return [(await graph({"run": number}))["done"] for number in range(3)]

    search, polish, draft = run_virtual(main())
    assert search == ["understand", "instead: yesterday's hits", *list(STEPS)[2:]]
    assert polish == [*list(STEPS)[:-1], "instead: unpolished"]
    assert draft == [*list(STEPS)[:3], "fallback"]


def test_time_outs_of_single_steps_are_handled_and_may_be_late_together() -> None:
    """With handlers every run answers; nothing keeps the sum under the ceiling."""
    sheet, _ = ceiling.tables(40)
    rows = {row["limit"]: row for row in sheet.rows}
    own = rows["its p95 for each step, handled"]
    assert own["no answer"] == rows["7.5 s for each step, handled"]["no answer"] == 0.0
    assert sum(ceiling.OWN.values()) > ceiling.CEILING
    assert own["complete"] > rows["7.5 s for each step, handled"]["complete"]


def test_the_same_rows_come_out_every_time() -> None:
    """Time is virtual and chance has a seed."""
    assert abandoned.table(2) == abandoned.table(2)
    assert hops.table(3) == hops.table(3)
    assert ceiling.tables(3) == ceiling.tables(3)


def test_tables_are_written_for_people_and_for_programs(tmp_path: Path) -> None:
    """Both files say the same, with versions and date."""
    rows: list[Any] = [
        {"what": "a", "share": 0.5, "seconds": None},
        {"what": "b", "share": 1.0, "seconds": 1_234.5},
    ]
    columns = {"what": "", "share": ".1%", "seconds": ",.1f"}
    sheet = Sheet("Title", "What was done.", columns, rows)
    facts = table.facts("python -m benchmarks.headlines")
    write("some", "All", [sheet], facts, tmp_path)
    said = (tmp_path / "some.md").read_text()
    assert said.startswith(f"# All\n\nMeasured on {facts['date']}")
    assert "| b    | 100.0% | 1,234.5 |" in said
    assert "| a    | 50.0%  |         |" in text([sheet], facts)
    kept = json.loads((tmp_path / "some.json").read_text())
    assert kept["versions"] == facts["versions"]
    assert kept["sheets"][0]["rows"] == rows
