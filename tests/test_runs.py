"""Reports of many runs: as JSON, as tables, summed up; bad files in clear words."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from langgraph_deadline import RunReport, _display
from langgraph_deadline._text import WIDTH
from langgraph_deadline.report import (
    VERSION,
    Cancellations,
    ModelTokens,
    StepReport,
    Straggler,
    TokenCount,
    ToolCallReport,
    Usage,
)
from langgraph_deadline.runs import Runs, read_reports
from langgraph_deadline.summary import Summary, summarize


def tokens(prompt: int | None, answer: int | None, late: int | None) -> ModelTokens:
    """Return tokens, those that are not known as absent."""
    known = [
        TokenCount(count=n, basis="absent" if n is None else "known")
        for n in (prompt, answer, late)
    ]
    return ModelTokens(input=known[0], output=known[1], after_cut=known[2])


def full(**changes: Any) -> RunReport:
    """Return a report with something in every field."""
    steps = [
        StepReport(name="plan", start=0, end=1, share=0.1, retries=2),
        StepReport(name="search", start=1, end=8, share=0.7, cause="deadline", limit=9),
        StepReport(
            name="gpt",
            kind="model",
            start=1.5,
            end=8,
            parent=1,
            cause="deadline",
            cut_at=8,
            tokens=tokens(1200, 80, 30),
        ),
        StepReport(name="write", start=8, end=8, cause="window", refused=True),
        StepReport(name="degrade", kind="fallback", start=8, end=8.1, share=0.01),
    ]
    values: dict[str, Any] = {
        "name": "agent",
        "started": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "outcome": "deadline",
        "cause": "deadline",
        "cut_step": "search",
        "cut_at": 8.0,
        "budget": 10.0,
        "reserve": 2.0,
        "elapsed": 8.1,
        "steps": steps,
        "stragglers": [Straggler(name="search", overrun=0.3, running=False, step=1)],
        "unknown": [ToolCallReport(name="pay", id="1", key="k")],
        "cancellations": Cancellations(asked=2, obeyed=1),
        "usage": Usage(steps=3, model_calls=1, input_tokens=1200, output_tokens=80),
    }
    return RunReport(**{**values, **changes})


# JSON.


def test_a_report_is_json_both_ways() -> None:
    """Nothing is lost, and the other way round."""
    report = full()
    again = RunReport.model_validate_json(report.model_dump_json())
    assert again.model_dump() == report.model_dump()
    assert again.started == report.started
    assert str(again) == str(report)
    assert again.model_calls[0].tokens == report.model_calls[0].tokens


@given(
    st.builds(
        full,
        budget=st.none() | st.floats(0.1, 1e6),
        reserve=st.floats(0, 10),
        elapsed=st.floats(0, 1e6),
        enforced=st.booleans(),
        interrupted=st.booleans(),
        steps=st.just([]),
        outcome=st.sampled_from(["completed", "error", "limit", "cancelled"]),
    )
)
def test_any_report_can_be_read_again_and_shown(report: RunReport) -> None:
    """Whatever its numbers are."""
    again = RunReport.model_validate_json(report.model_dump_json())
    assert again.model_dump() == report.model_dump()
    assert "No step was started" in str(again)


def test_reports_are_read_from_every_shape_of_file(tmp_path: Path) -> None:
    """One object, a list, one a line; several files at once."""
    one, listed, lines = (tmp_path / name for name in ("1.json", "2.json", "3.jsonl"))
    one.write_text(full().model_dump_json(indent=2))
    listed.write_text(json.dumps([full().model_dump(mode="json")] * 2))
    Runs([full(), full(), full()]).to_json(lines)
    assert [len(read_reports(path)) for path in (one, listed, lines)] == [1, 2, 3]
    assert len(read_reports(one, listed, str(lines))) == 6


def lines_with(text: str) -> str:
    return f"{full().model_dump_json()}\n{text}\n"


def without(key: str) -> str:
    data = full().model_dump(mode="json")
    del data[key]
    return json.dumps(data)


BAD: dict[str, tuple[str, str]] = {
    "empty": ("", "is empty: it holds no reports"),
    "empty list": ("[]", "is an empty list"),
    "truncated": (full().model_dump_json()[:-50], "It looks cut off at its end"),
    "truncated line": (lines_with('{"version": 1, "ste'), "line 2, .*cut off"),
    "another version": (
        json.dumps({**full().model_dump(mode="json"), "version": 7}),
        f"a report of version 7, and this release reads version {VERSION}",
    ),
    "in flight": (without("outcome"), "was still in flight"),
    "something else": ('{"some": "thing"}', "holds no report: outcome"),
    "a number": ("5", "holds no report"),
    "no json": ("hello", "is not JSON"),
    "bad entry": ("[5]", "entry 1 holds no report"),
}


@pytest.mark.parametrize("name", BAD)
def test_c13_what_is_no_report_is_refused_in_clear_words(
    tmp_path: Path, name: str
) -> None:
    """The file is named, and what is wrong with it."""
    text, said = BAD[name]
    path = tmp_path / "reports.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=said) as caught:
        read_reports(path)
    assert str(path) in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_c13_a_binary_file_and_a_missing_one_are_said(tmp_path: Path) -> None:
    """As what they are."""
    path = tmp_path / "x"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is no text"):
        read_reports(path)
    with pytest.raises(FileNotFoundError):
        read_reports(tmp_path / "missing.json")


def test_c13_a_report_of_another_version_is_refused_by_the_model_too() -> None:
    """Also where pydantic reads it."""
    with pytest.raises(ValidationError, match="version 2"):
        RunReport.model_validate({"version": 2, "outcome": "completed"})


# Text.


@pytest.mark.parametrize("report", [full(), full(enforced=False, outcome="completed")])
def test_a_table_fits_a_terminal(report: RunReport) -> None:
    """Whatever the names are."""
    longer = report.model_copy(deep=True)
    for step in longer.steps:
        step.name = step.name * 12
    assert max(map(len, str(longer).splitlines())) <= WIDTH
    assert max(map(len, str(report).splitlines())) <= WIDTH


def test_a_table_says_what_happened_to_each_step() -> None:
    """In words, beside the bars."""
    text = str(full())
    for said in (
        "agent: deadline after 8.1 s of 10 s, 2 s of them for the fallback",
        "2 retries",
        "cut: deadline",
        "refused: window",
        "model, cut: deadline, 1,200+80 tokens",
        "Straggler: 'search' ran on for 300 ms",
        "Unknown outcome: tool 'pay'",
        "Cancellations: 2 asked, 1 obeyed",
    ):
        assert said in text
    assert "  gpt" in text


def test_a_measured_run_says_that_nothing_was_cut() -> None:
    """And why it would have been."""
    text = str(full(outcome="completed", enforced=False))
    assert "completed, would have been cut (deadline)" in text
    assert "measured only" in text


# Summaries.


def test_a_summary_has_exact_quantiles_and_rates() -> None:
    """By the nearest rank."""
    runs = [
        full(
            outcome="completed",
            elapsed=float(n),
            steps=[StepReport(name="a", start=0, end=n, share=n / 100)],
            budget=100.0,
            cancellations=Cancellations(),
        )
        for n in range(1, 101)
    ]
    summary = summarize(runs)
    (step,) = summary.steps
    assert (step.p50, step.p95, step.p99) == (50, 95, 99)
    assert (summary.elapsed_p50, summary.elapsed_p99) == (50, 99)
    assert step.share == pytest.approx(0.505)
    assert summary.unused == pytest.approx(0.495)
    assert summary.obeyed_rate is None


def test_a_summary_has_the_four_signals() -> None:
    """Latency and excess per step, tokens of abandoned calls, obeyed cancellations."""
    summary = summarize([full(), full(outcome="completed", steps=[])])
    by_name = {step.name: step for step in summary.steps}
    assert by_name["search"].cut_rate == 1
    assert (by_name["write"].refused_rate, by_name["write"].count) == (1, 0)
    assert by_name["write"].p50 is None
    assert summary.exceeded_rate == 0.5
    assert summary.obeyed_rate == 0.5
    assert summary.abandoned_tokens == 1280
    assert summary.after_cut_rate == pytest.approx(30 / 80)
    told = summary.model_dump(mode="json")
    assert told["obeyed_rate"] == 0.5
    assert Summary.model_validate(told) == summary


def test_runs_inside_others_are_not_counted_twice() -> None:
    """The outer report has their steps, and their cancellations."""
    outer = full()
    inner = full(parent=outer.id)
    alone = summarize([inner])
    both = summarize([outer, inner])
    assert both.runs == 2
    assert [step.count for step in both.steps] == [step.count for step in alone.steps]
    assert both.cancellations_asked == alone.cancellations_asked == 2


def test_what_only_would_have_been_cut_has_cost_nothing() -> None:
    """Its tokens were not spent in vain."""
    measured = full(enforced=False, outcome="completed")
    assert summarize([measured]).abandoned_tokens == 0


def test_no_runs_are_said_in_words() -> None:
    """No empty chart, no division by nothing."""
    assert "No runs" in str(Runs())
    assert "No runs" in str(summarize([]))
    assert list(Runs()._repr_mimebundle_()) == ["text/plain"]
    with pytest.raises(ValueError, match="No runs"):
        Runs().to_html()
    with pytest.raises(ValueError, match="No runs"):
        Runs().to_png()


def test_without_the_library_for_pictures_there_is_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And whoever asks for a picture is told what to install."""
    monkeypatch.setattr(_display, "possible", lambda: False)
    report = full()
    assert list(report._repr_mimebundle_()) == ["text/plain"]
    assert list(Runs([report])._repr_mimebundle_()) == ["text/plain"]
    assert list(summarize([report])._repr_mimebundle_()) == ["text/plain"]
    with pytest.raises(ImportError, match=r"langgraph-deadline\[notebook\]"):
        report.to_png()


def test_with_it_reports_show_themselves() -> None:
    """As a timeline, and many as a summary; pages and pictures on disk."""
    report = full()
    for shown in (report, Runs([report, report]), summarize([report])):
        bundle = shown._repr_mimebundle_()  # type: ignore[attr-defined]
        assert "<svg" in bundle["text/html"]
        assert bundle["text/plain"] == str(shown)
    assert report.to_html().startswith("<!")
    assert Runs([report]).to_html().startswith("<!")
    assert report.to_png()[:4] == Runs([report]).to_png()[:4] == b"\x89PNG"
