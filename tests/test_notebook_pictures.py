"""Pictures: what they show, that everybody can read them, and that they are safe."""

from __future__ import annotations

import asyncio
import io
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, TypedDict
from xml.etree import ElementTree as ET

import matplotlib as mpl
import pytest
from langgraph.graph import START
from PIL import Image

from langgraph_deadline import (
    DeadlinePolicy,
    StateGraph,
    StepBudget,
    _shares,
    collect_runs,
    notebook,
)
from langgraph_deadline._charts import MOST_PARTS, summary_scene
from langgraph_deadline._page import checked_theme
from langgraph_deadline._rows import MOST_ROWS, rows_of
from langgraph_deadline._scene import (
    DARK,
    LIGHT,
    PAD,
    WIDTH,
    Box,
    Line,
    Mark,
    Scene,
    Words,
    fitted,
    ticks,
    width_of,
    wrapped,
)
from langgraph_deadline._timeline import timeline_scene
from langgraph_deadline.report import (
    ModelTokens,
    RunReport,
    StepReport,
    Straggler,
    TokenCount,
    ToolCallReport,
)
from langgraph_deadline.runs import Runs
from langgraph_deadline.summary import Summary, summarize
from langgraph_deadline.testing import run_virtual

# Reports.


def step(name: str, start: float, end: float, **more: Any) -> StepReport:
    return StepReport(name=name, start=start, end=end, share=(end - start) / 10, **more)


def tokens(given: int, made: int, late: int | None = None) -> ModelTokens:
    count = TokenCount() if late is None else TokenCount(count=late, basis="estimated")
    return ModelTokens(
        input=TokenCount(count=given, basis="known"),
        output=TokenCount(count=made, basis="estimated"),
        after_cut=count,
    )


def run(*steps: StepReport, **more: Any) -> RunReport:
    details: dict[str, Any] = {
        "name": "agent",
        "outcome": "completed",
        "budget": 10,
        "reserve": 2,
        "elapsed": max((step.end for step in steps), default=0.0),
    }
    return RunReport(steps=list(steps), **(details | more))


def cut(**more: Any) -> dict[str, Any]:
    return {"cause": "deadline", "cut_at": 8.0} | more


def agent() -> RunReport:
    """A run in which everything happens that can be shown."""
    return run(
        step("plan", 0, 1.3),
        step("gpt-5-mini", 0.1, 1.2, kind="model", parent=0, tokens=tokens(1240, 212)),
        step("search", 1.3, 4.1, retries=2),
        step(
            "crawl",
            1.4,
            4.1,
            kind="tool",
            parent=2,
            cause="step",
            cut_at=4.0,
            limit=2.6,
        ),
        step(
            "deep_crawl",
            1.4,
            1.4,
            kind="tool",
            parent=2,
            refused=True,
            cause="window",
            window=5.0,
        ),
        step("rank", 1.3, 2.9, error="ValueError"),
        step("write", 4.1, 8.2, **cut()),
        step("sonnet", 4.2, 8.2, kind="model", parent=6, **cut(tokens=tokens(9, 8, 7))),
        step("degrade", 8.2, 8.9, kind="fallback"),
        outcome="deadline",
        cause="deadline",
        cut_at=8.0,
        stragglers=[Straggler(name="crawl", overrun=1.9, running=False)],
        unknown=[ToolCallReport(name="crawl", key="key-1")],
    )


def pipeline(number: int = 20) -> Runs:
    made = Runs()
    for at in range(number):
        wait = 1 + at / 10
        steps = [
            step("plan", 0, 1),
            step("search", 1, 1 + wait),
            step("sonnet", 1, 1 + wait, kind="model", parent=1, tokens=tokens(9, 80)),
        ]
        if at % 4 == 0:
            steps.append(step("rank", 4, 4, refused=True, cause="window"))
        if at % 5 == 0:
            late = {"kind": "model", "parent": len(steps)} | cut(
                tokens=tokens(9, 40, 4)
            )
            steps += [step("write", 4, 8, **cut()), step("sonnet", 4, 8, **late)]
        made.append(run(*steps))
    return made


def texts(scene: Scene) -> list[str]:
    return [item.text for item in scene.items if isinstance(item, Words)]


def item(scene: Scene, text: str) -> Words:
    """Return the words that are `text`, or else contain it."""
    words = [words for words in scene.items if isinstance(words, Words)]
    found = [w for w in words if w.text == text] + [w for w in words if text in w.text]
    assert found, f"{text!r} is not in {texts(scene)}"
    return found[0]


def row(scene: Scene, name: str) -> list[Any]:
    """Return what stands in the row of a step."""
    middle = item(scene, name).y - 4

    def is_there(thing: Any) -> bool:
        y = thing.y + thing.height / 2 if isinstance(thing, Box) else thing.y
        thin = not isinstance(thing, Box) or thing.height < 20
        flat = not isinstance(thing, Line) or thing.y == thing.to_y
        return thin and flat and abs(y - middle) < 6

    return [thing for thing in scene.items if is_there(thing)]


def marks(scene: Scene, name: str) -> list[str]:
    found = [m for m in row(scene, name) if isinstance(m, Mark)]
    return [mark.shape for mark in found]


def said(scene: Scene, name: str) -> list[str]:
    return [words.text for words in row(scene, name) if isinstance(words, Words)]


def upright(scene: Scene, ink: str = "deadline") -> list[Line]:
    lines = [line for line in scene.items if isinstance(line, Line) and line.ink == ink]
    return [line for line in lines if line.x == line.to_x]


# Timelines.


def test_each_step_is_a_row_below_what_it_is_inside_of() -> None:
    names = [(row.step.name, row.depth) for row in rows_of(agent())]
    assert names == [
        ("plan", 0),
        ("gpt-5-mini", 1),
        ("search", 0),
        ("crawl", 1),
        ("deep_crawl", 1),
        ("rank", 0),
        ("write", 0),
        ("sonnet", 1),
        ("degrade", 0),
    ]
    scene = timeline_scene(agent())
    assert item(scene, "plan").x < item(scene, "gpt-5-mini").x


def test_steps_are_in_order_of_start_also_when_branches_mix() -> None:
    """A step never stands below another one's parent."""
    report = run(
        step("a", 0, 5),
        step("b", 0.1, 5),
        step("in a", 1, 2, parent=0),
        step("in b", 1.5, 2, parent=1),
        step("in a too", 2, 3, parent=0),
    )
    names = [row.step.name for row in rows_of(report)]
    assert names == ["a", "in a", "in a too", "b", "in b"]


def test_deadline_and_work_deadline_stand_where_they_are() -> None:
    scene = timeline_scene(agent())
    works, deadline = upright(scene)
    assert (works.dash, deadline.dash) == ("dashed", "solid")
    zero, per_second = item(scene, "0").x, (item(scene, "2").x - item(scene, "0").x) / 2
    assert works.x == pytest.approx(zero + 8 * per_second)
    assert deadline.x == pytest.approx(zero + 10 * per_second)
    (reserve,) = [b for b in scene.items if isinstance(b, Box) and b.fill == "reserve"]
    assert (reserve.x, reserve.x + reserve.width) == (works.x, deadline.x)
    assert {"work deadline 8 s", "deadline 10 s", "reserve"} <= set(texts(scene))


def test_after_a_resume_the_deadline_is_what_was_left() -> None:
    report = run(step("act", 0, 1), spent_before=6.5, elapsed=7.5)
    scene = timeline_scene(report)
    assert {"work deadline 1.5 s", "deadline 3.5 s"} <= set(texts(scene))
    assert "seconds since the resume" in texts(scene)
    assert item(scene, "6.5 s were charged before it")


def test_a_deadline_far_away_does_not_press_the_steps_together() -> None:
    scene = timeline_scene(run(step("quick", 0, 1), budget=300, reserve=60))
    assert upright(scene) == []
    assert "deadline 300 s" in texts(scene)
    assert [m.shape for m in scene.items if isinstance(m, Mark)] == ["arrow"]
    (bar,) = [b for b in row(scene, "quick") if isinstance(b, Box)]
    assert bar.width > 300


def test_without_a_deadline_there_are_no_lines() -> None:
    scene = timeline_scene(run(step("a", 0, 1), budget=None, reserve=0))
    assert upright(scene) == []
    assert not any(
        "deadline" in text.removeprefix("agent") for text in texts(scene)[2:]
    )


def test_a_cut_step_is_hatched_marked_and_named() -> None:
    scene = timeline_scene(agent())
    (bar,) = [b for b in row(scene, "write") if isinstance(b, Box)]
    assert bar.hatch
    assert set(marks(scene, "write")) == {"cross"}
    assert "cut: deadline" in said(scene, "write")
    assert "cut: step, its limit is 2.6 s, ran on for 1.9 s" in said(scene, "crawl")
    (whole,) = [b for b in row(scene, "plan") if isinstance(b, Box)]
    assert not whole.hatch


def test_a_refused_step_is_an_open_marker_with_its_reason() -> None:
    scene = timeline_scene(agent())
    assert [b for b in row(scene, "deep_crawl") if isinstance(b, Box)] == []
    (mark,) = [m for m in row(scene, "deep_crawl") if isinstance(m, Mark)]
    assert (mark.shape, mark.fill) == ("diamond", "background")
    assert "refused: window, needs 5 s" in said(scene, "deep_crawl")


def test_what_was_only_measured_looks_different_from_what_was_cut() -> None:
    report = run(step("a", 0, 9, **cut()), enforced=False, cut_at=8.0)
    scene = timeline_scene(report)
    assert marks(scene, "a") == ["triangle"]
    before, after = (b for b in row(scene, "a") if isinstance(b, Box))
    assert not before.hatch
    assert after.hatch not in ("", "/////")
    assert "would have been cut: deadline" in said(scene, "a")
    assert item(scene, "Measured only")


def test_stragglers_are_drawn_on_beyond_their_cut() -> None:
    scene = timeline_scene(agent())
    (line,) = [x for x in row(scene, "crawl") if isinstance(x, Line)]
    assert line.dash == "dotted"
    assert marks(scene, "crawl")[-1] == "bar"
    report = run(
        step("a", 0, 8.2, **cut()), stragglers=[Straggler(name="a", overrun=900)]
    )
    scene = timeline_scene(report)
    assert marks(scene, "a")[-1] == "arrow"  # it still runs
    assert "ran on for 900 s and still runs" in " ".join(said(scene, "a"))


def test_a_straggler_of_no_step_is_told_of_below() -> None:
    report = run(step("a", 0, 1), stragglers=[Straggler(name="b", overrun=2)])
    assert item(timeline_scene(report), "Straggler: 'b' ran on for 2 s")


def test_tokens_retries_errors_and_unknown_outcomes_are_told() -> None:
    scene = timeline_scene(agent())
    assert "1,240 + ~212 tokens" in said(scene, "gpt-5-mini")
    assert item(scene, "~7 of them after the cut")
    assert "2 retries" in said(scene, "search")
    assert "failed: ValueError" in said(scene, "rank")
    assert item(scene, "Unknown outcome: tool 'crawl', idempotency key key-1")


def test_a_cut_at_another_time_has_its_own_line() -> None:
    scene = timeline_scene(run(step("a", 0, 3), cause="cancelled", cut_at=3.0))
    assert "cut 3 s: cancelled" in texts(scene)


def test_of_hundreds_of_steps_the_cut_and_the_longest_are_shown() -> None:
    steps = [step(f"s{n}", 0, 1 + n / 1000) for n in range(500)]
    steps[3] = step("cut", 0, 0.1, **cut())
    steps += [step("inside", 0, 9, parent=5)]
    report = run(*steps)
    rows = rows_of(report)
    names = [row.step.name for row in rows]
    assert len(names) == MOST_ROWS
    assert {"cut", "s499", "s5", "inside"} <= set(names)
    scene = timeline_scene(report)
    assert item(scene, f"{501 - MOST_ROWS} more steps are left out")


def test_everything_stays_inside_the_picture() -> None:
    """Whatever is long: names, remarks, depth, times."""
    long = "a very long name that goes on and on, " * 4
    steps = [step(f"{n} {long}", 0, 9, parent=n - 1 if n else None) for n in range(12)]
    steps.append(step(long, 0, 9, **cut(error="E" * 200, tokens=tokens(10**9, 10**9))))
    report = run(*steps, name=long, stragglers=[Straggler(name=long, overrun=1e6)])
    for scene in (timeline_scene(report), summary_scene(summarize([report]), [report])):
        for words in (w for w in scene.items if isinstance(w, Words)):
            width = width_of(words.text, words.size)
            part = {"left": 0.0, "center": 0.5, "right": 1.0}[words.align]
            assert words.x - part * width >= 0, words
            assert words.x + (1 - part) * width <= WIDTH - PAD / 2, words
            assert 0 < words.y <= scene.height


# Summaries.


def test_latencies_and_rates_are_shown_for_each_step() -> None:
    runs = pipeline()
    scene = summary_scene(runs.summary(), runs)
    assert marks(scene, "search") == ["bar", "diamond", "circle"]
    assert "1.9 s / 2.8 s / 2.9 s" in said(scene, "search")
    assert {"refused rate", "cut rate"} <= set(texts(scene))
    assert "100%" in said(scene, "rank")
    rates = [b for b in row(scene, "write") if isinstance(b, Box) and b.hatch]
    assert len(rates) == 1


def test_there_are_no_empty_panels() -> None:
    runs = Runs([run(step("a", 0, 1), budget=None, reserve=0)])
    said = " ".join(texts(summary_scene(runs.summary(), runs)))
    assert "rate" not in said
    assert "budget" not in said
    assert "tokens" not in said


def test_where_the_budget_goes_adds_up_to_the_whole() -> None:
    shares = _shares.shares_of(pipeline())
    assert sum(shares.values()) == pytest.approx(1)
    assert list(shares)[-1] == "unused"
    assert "sonnet" not in shares  # inside of others


def test_steps_that_run_at_the_same_time_share_it() -> None:
    report = run(step("a", 0, 4), step("b", 0, 2), elapsed=5, spent_before=0)
    assert _shares.shares_of([report]) == pytest.approx(
        {"a": 0.3, "b": 0.1, "between steps": 0.1, "unused": 0.5}
    )


def test_what_was_charged_before_a_resume_is_no_steps() -> None:
    report = run(step("a", 0, 1), spent_before=6, elapsed=7)
    assert _shares.shares_of([report]) == pytest.approx(
        {"a": 0.1, "before a resume": 0.6, "unused": 0.3}
    )


def test_a_summary_alone_is_enough_for_shares_that_add_up() -> None:
    report = run(step("a", 0, 5), step("b", 0, 5), step("m", 0, 5, kind="model"))
    shares = _shares.shares_in(summarize([report]))
    assert shares == pytest.approx({"a": 0.25, "b": 0.25, "unused": 0.5})
    assert _shares.shares_in(Summary()) == {}


def test_many_parts_of_the_budget_are_put_together() -> None:
    report = run(*(step(f"s{n}", n / 10, n / 10 + 0.1) for n in range(50)))
    scene = summary_scene(summarize([report]), [report])
    assert item(scene, f"{50 - MOST_PARTS} other steps")
    assert item(scene, "more steps are left out")


def test_parts_of_a_bar_differ_without_colour() -> None:
    """By pattern, or by how light they are, from both neighbours."""
    report = run(*(step(f"s{n}", n, n + 1) for n in range(8)))
    scene = summary_scene(summarize([report]), [report])
    parts = [b for b in scene.items if isinstance(b, Box) and b.height == 24.0]
    for one, other in pairwise(parts):
        assert one.hatch != other.hatch


def test_tokens_after_the_cut_are_shown_as_a_share() -> None:
    runs = pipeline()
    scene = summary_scene(runs.summary(), runs)
    late = runs.summary().after_cut_rate
    assert 0 < late < 0.1
    assert item(scene, f"after the cut {late:.1%}")


# Colours.


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [
        p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("palette", [LIGHT, DARK])
def test_words_and_bars_stand_out_from_their_background(palette: Any) -> None:
    """As WCAG asks: 4.5 for words, 3 for what is drawn."""
    for role in ("ink", "muted", "deadline"):
        assert contrast(palette[role], palette["background"]) >= 4.5
        assert contrast(palette[role], palette["reserve"]) >= 4.5
    for role in ("work", "tool", "model", "fallback", "rest"):
        assert contrast(palette[role], palette["background"]) >= 3
        if role != "rest":
            assert contrast(palette[role], palette[f"{role}-soft"]) >= 2.5


def test_each_role_has_a_colour_of_its_own() -> None:
    """Themes are told apart by them."""
    assert LIGHT.keys() == DARK.keys()
    for palette in (LIGHT, DARK):
        assert all(a != b for a, b in combinations(palette.values(), 2))


# Pages.


class Reader(HTMLParser):
    """Looks at a page as a browser does."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.references: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            self.attributes.append((tag, name, value or ""))
            if name == "id":
                self.ids[value] += 1
            if name.endswith("href"):
                self.references.append(value)
            self.references += re.findall(r"url\(([^)]*)\)", value or "")


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    return reader


def svgs(html: str) -> list[ET.Element]:
    return [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]


def test_a_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    path = tmp_path / "run.html"
    html = agent().to_html(path)
    assert path.read_text(encoding="utf-8") == html
    reader = read(html)
    assert all(reference.startswith("#") for reference in reader.references)
    assert not {"script", "link", "img", "iframe"} & set(reader.tags)
    assert "@import" not in html
    urls = set(re.findall(r"https?://[^\"' ]*", html))
    assert urls <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_a_page_can_be_read_by_a_screen_reader() -> None:
    report = agent()
    html = report.to_html()
    assert html.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert '<meta charset="utf-8">' in html
    assert "<title>Timeline of a run of agent</title>" in html
    (svg,) = svgs(html)
    assert svg.get("role") == "img"
    named = {e.get("id"): e.text for e in svg.iter() if e.get("id")}
    title, text = [named[name] for name in (svg.get("aria-labelledby") or "").split()]
    assert (title, text) == ("Timeline of a run of agent", str(report))
    assert "crawl" in html.partition("<pre>")[2]


def test_text_stays_text() -> None:
    (svg,) = svgs(agent().to_html())
    shown = [e.text for e in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert {"plan", "cut: deadline", "work deadline 8 s"} <= set(shown)


def test_ids_are_unique_and_references_lead_somewhere() -> None:
    picture = notebook.page([agent(), agent()])
    html = picture.to_html() + picture.fragment()
    reader = read(html)
    assert set(reader.ids.values()) == {1}
    for reference in reader.references:
        assert reference.removeprefix("#") in reader.ids


def test_names_of_steps_cannot_break_a_page() -> None:
    evil = '<script>alert("#ffffff")</script> id="x" url(#y) $x^2$ --> &amp;'
    report = run(step(evil, 0, 1), name=evil)
    html = report.to_html()
    reader = read(html)
    assert reader.tags["script"] == 0
    assert all(count == 1 for count in reader.ids.values())
    (svg,) = svgs(html)
    assert (
        svg.findtext("{http://www.w3.org/2000/svg}title")
        == f"Timeline of a run of {evil}"
    )
    shown = [e.text or "" for e in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert any(text.startswith('<script>alert("#ffffff")') for text in shown)


def test_auto_follows_the_system_and_the_notebook() -> None:
    html = notebook.timeline(agent()).fragment()
    assert "prefers-color-scheme: dark" in html
    for host in ('data-jp-theme-light="false"', 'data-jp-theme-light="true"'):
        assert f"body[{host}] .lgd-auto" in html
    assert "body.vscode-dark .lgd-auto" in html
    assert f"var(--lgd-ink, {LIGHT['ink']})" in html  # where styles are taken away
    for colour in DARK.values():
        assert colour in html


@pytest.mark.parametrize(("theme", "palette"), [("light", LIGHT), ("dark", DARK)])
def test_a_fixed_theme_stays_as_it_is(theme: str, palette: Any) -> None:
    html = notebook.timeline(agent(), theme=theme).to_html()
    assert "prefers-color-scheme" not in html
    assert "data-jp-theme-light" not in html
    assert f"--lgd-background: {palette['background']};" in html


def test_pictures_of_two_themes_can_stand_on_one_page() -> None:
    light = notebook.timeline(agent(), theme="light").fragment()
    dark = notebook.timeline(agent(), theme="dark").fragment()
    assert ".lgd-light {" in light
    assert ".lgd-dark {" in dark
    assert 'class="lgd lgd-dark"' in dark


def test_an_unknown_theme_is_named() -> None:
    with pytest.raises(
        ValueError, match="theme must be one of auto, light, dark, got 'x'"
    ):
        checked_theme("x")
    for draw in (notebook.timeline, notebook.summary, notebook.page):
        with pytest.raises(ValueError, match="theme"):
            draw(agent() if draw is notebook.timeline else [agent()] * 2, theme="x")  # type: ignore[arg-type]


def test_a_run_without_steps_is_a_sentence() -> None:
    picture = notebook.timeline(run())
    assert "<svg" not in picture.to_html()
    assert "No step was started." in picture.fragment()
    with pytest.raises(ValueError, match=r"nothing to draw: .*No step was started"):
        picture.to_png()


def test_a_page_of_many_runs_has_their_timelines_below_the_summary() -> None:
    picture = notebook.page(pipeline(3))
    assert picture.title == "Summary of 3 runs"
    assert len(svgs(picture.to_html())) == 4
    assert notebook.page([agent()]).title == "Timeline of a run of agent"


def test_a_page_of_very_many_runs_shows_those_that_did_not_complete() -> None:
    runs = [run(step("a", 0, 1)) for _ in range(200)]
    runs[150] = run(step("a", 0, 1), outcome="deadline", name="the cut one")
    picture = notebook.page(runs)
    assert len(picture.more) == notebook.MOST_RUNS + 1
    assert picture.more[0].text.startswith("150 more runs are left out")
    assert "Timeline of a run of the cut one" in {below.title for below in picture.more}


def test_no_runs_are_a_sentence_too() -> None:
    assert "No runs" in notebook.page([]).to_html()
    assert "No runs" in notebook.summary(Summary()).fragment()


# PNG.


def image(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png))


@pytest.mark.parametrize(("theme", "palette"), [("light", LIGHT), ("dark", DARK)])
def test_a_png_has_the_theme_and_the_size_of_the_picture(
    tmp_path: Path, theme: str, palette: Any
) -> None:
    path = tmp_path / "run.png"
    png = agent().to_png(path, theme=theme)
    assert path.read_bytes() == png
    drawn = image(png).convert("RGB")
    assert drawn.width == 2 * WIDTH
    assert drawn.height == pytest.approx(2 * timeline_scene(agent()).height, abs=1)
    assert drawn.getpixel((2, 2)) == tuple(bytes.fromhex(palette["background"][1:]))


def test_summaries_have_a_png() -> None:
    assert image(pipeline().to_png()).width == 2 * WIDTH
    assert notebook.summary(pipeline().summary()).to_png()[:4] == b"\x89PNG"


# Matplotlib.


def test_settings_of_the_user_change_nothing_and_are_left_alone() -> None:
    plain = agent().to_png()
    style = {
        "axes.grid": True,
        "savefig.bbox": "tight",
        "savefig.dpi": 30,
        "figure.constrained_layout.use": True,
        "lines.marker": "o",
        "font.family": "serif",
        "savefig.facecolor": "red",
    }
    with mpl.rc_context(style):
        before = dict(mpl.rcParams)
        assert agent().to_png() == plain
        agent().to_html()
        assert dict(mpl.rcParams) == before


def test_several_threads_may_draw_at_once() -> None:
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda _: agent().to_png(), range(8)))
    assert len(set(drawn)) == 1


def test_no_window_and_no_pyplot_are_needed() -> None:
    """In a process of its own, for others may have imported it here."""
    code = (
        "import sys; from langgraph_deadline.report import RunReport, StepReport\n"
        "steps = [StepReport(name='a', start=0, end=1)]\n"
        "report = RunReport(outcome='completed', steps=steps)\n"
        "assert report.to_png() and report.to_html()\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_a_report_shows_itself_in_a_notebook() -> None:
    bundle = agent()._repr_mimebundle_()
    assert "<svg" in bundle["text/html"]
    assert bundle["text/plain"] == str(agent())
    assert "<svg" in notebook.timeline(agent())._repr_html_()


# Words and numbers.


def test_words_are_fitted_from_the_middle() -> None:
    assert fitted("short", 100) == "short"
    long = fitted("worker number 17 of the many workers that there are", 100)
    assert "…" in long
    assert long.startswith("worker")
    assert long.endswith("are")
    assert width_of(long) <= 100
    assert fitted("two\n lines", 200) == "two lines"


def test_remarks_are_wrapped_between_parts() -> None:
    assert wrapped(["one", "two"], 100) == ["one, two"]
    assert wrapped(["one", "two", "three"], 60) == ["one, two", "three"]
    assert wrapped([], 60) == []


@pytest.mark.parametrize("length", [1e-4, 0.3, 1, 7.3, 10, 59, 3600, 1e6])
def test_ticks_are_few_and_round(length: float) -> None:
    marked = ticks(length)
    assert 3 <= len(marked) <= 9
    assert marked[0] == 0
    assert marked[-1] <= length * 1.000001
    assert ticks(0) == [0.0]


# Real runs.


class State(TypedDict, total=False):
    answer: str


async def plan(state: State) -> State:
    await asyncio.sleep(1)
    return {}


async def look_up(state: State) -> State:
    await asyncio.sleep(60)
    return {}


async def write(state: State) -> State:
    await asyncio.sleep(60)
    return {}


def degrade(state: State) -> State:
    return {"answer": "some"}


def real(**policy: Any) -> RunReport:
    builder = StateGraph(State)
    builder.add_sequence([plan, look_up, write])
    builder.add_edge(START, "plan")
    budget = StepBudget(seconds=2, otherwise={})
    deadline = DeadlinePolicy(seconds=10, steps={"look_up": budget}, **policy)
    graph = builder.compile(deadline=deadline, fallback=degrade, name="real")
    with collect_runs() as runs:
        run_virtual(graph.ainvoke({}))
    (report,) = runs
    return report


def test_a_real_run_is_drawn_as_it_was() -> None:
    scene = timeline_scene(real())
    assert "cut: step, its limit is 2 s" in said(scene, "look_up")
    assert "cut: deadline" in said(scene, "write")
    assert "fallback" in said(scene, "degrade")
    assert "deadline 10 s" in texts(scene)


def test_a_real_run_that_is_only_measured_is_drawn_as_such() -> None:
    scene = timeline_scene(real(enforce=False))
    assert marks(scene, "write") == ["triangle"]
    assert "would have been cut: deadline" in said(scene, "write")
