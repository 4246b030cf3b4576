"""The rows as tables for people."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..sheet import Sheet
from . import work
from .peers import Candidate
from .run import ON_TIME, Row

ROWS = (
    "peer",
    "case",
    "on time?",
    "the caller gets",
    "still running 1 s later",
    "tokens after the deadline",
    "partial state kept?",
    "next turn usable?",
)
CONDENSED = (
    "peer",
    "on time",
    "latest",
    "something to show, on time",
    "nothing running 1 s later",
    "tokens after the deadline",
    "partial state kept",
    "next turn usable",
    "how",
)

NOTE = f"""The same agent everywhere: a scripted model (OpenAI's chat completions on \
loopback) asks for two tools and answers; in each case something else goes wrong. The \
deadline is {work.DEADLINE:g} s, nobody waits longer than {work.BOUND:g} s. Each row \
is one run, on a machine that may be busy: up to {ON_TIME:g} s late is on time, and a \
run that is later is repeated once; the better of the two is shown, with the time of \
the other, and *latest* is the latest of them all. The drivers in \
`benchmarks/peers/drivers` say which documented mechanism each one uses.

* *The caller gets* what the call returns or raises. An answer, a part of one or a \
closing message is something to show. Whoever reads a stream has its \
tokens so far, with any peer.
* *Still running* are tools whose body has not ended and calls that the model is still \
answering, a second after the caller had something, or after the deadline if that was \
later. *Started late* is what began after the deadline.
* *Tokens after the deadline* are counted by the model, for {work.BOUND:g} s (`+`: it \
was still generating then). A call that is not streamed is generated to its end when \
its client has left, as providers do. Every row but one calls the model as its SDK \
does by default, and streams in the case of the stream only. The one is \
langgraph-deadline with a fallback: it wraps the model with `with_deadline`, as its \
README advises, which streams every call, and that is where its figure comes from. \
Unwrapped, as in the last row, it is like the others. Who else ends a call that is \
streamed, the case of the stream shows.
* *A reserve* costs answers: langgraph-deadline with a fallback and `asyncio.wait_for` \
with a second graph stop the work at {0.8 * work.DEADLINE:g} s, to be on time with \
their closing message. langgraph-node-deadline stops it at {0.9 * work.DEADLINE:g} s. \
Work that ends between then and the deadline loses its answer.
* *Partial state*: whether the result of the first tool, which had finished, is in \
what the peer keeps (checkpoint, history of the error, session, context); `-` where \
nothing had finished.
* *Next turn*: a second question in the same conversation. Like OpenAI, the model \
refuses a history in which a tool call has no answer (and the SDK raises what it \
raises for status 400)."""


def cells(row: Row) -> tuple[str, ...]:
    if row.got in {"failed", "not installed"}:
        return (row.peer, row.case, row.got, row.detail, "", "", "", "")
    return (
        row.peer,
        work.CASES.get(row.case, row.case),
        on_time(row),
        gets(row),
        running(row),
        tokens(row.tokens_late, row.tokens_open),
        row.kept,
        row.next_turn,
    )


def on_time(row: Row) -> str:
    if row.got == "nothing":
        said = f"no: not in {work.BOUND:g} s"
    elif row.on_time:
        said = f"yes, {row.elapsed:.2f} s"
    else:
        late = (row.elapsed or 0.0) - work.DEADLINE
        said = f"no, {row.elapsed:.2f} s: late by {late:.2f} s"
    return "; ".join(
        [said, *(f"the other run: {arrival(each)}" for each in row.others)]
    )


def arrival(elapsed: float | None) -> str:
    """Return when the caller of another run had something."""
    if elapsed is None or elapsed >= work.BOUND:
        return f"not in {work.BOUND:g} s"
    return f"{elapsed:.2f} s"


def gets(row: Row) -> str:
    said = {
        "answer": "the answer",
        "partial": "a part of the answer",
        "closing": f'a closing message: "{row.detail}"',
        "empty": "an answer without a word",
        "error": row.detail,
    }
    return said.get(row.got, row.got)


def running(row: Row) -> str:
    said = counted(row.running) or "nothing"
    late = counted(row.started_late)
    return f"{said}; started late: {late}" if late else said


def counted(names: Sequence[str]) -> str:
    return ", ".join(
        name if count == 1 else f"{count} x {name}"
        for name, count in Counter(names).items()
    )


def tokens(count: int | None, still: bool) -> str:
    return "" if count is None else f"{count}{'+' if still else ''}"


def condensed(candidate: Candidate, rows: Sequence[Row]) -> tuple[str, ...]:
    """Return one line for a candidate's rows: how many of them are as they should."""
    run = [row for row in rows if row.got not in {"failed", "not installed"}]
    if not run:
        return (candidate.title, rows[0].got, *[""] * 6, rows[0].detail)
    partly = [row for row in run if row.kept not in {"-", "n/a"}]
    late = sum(row.tokens_late or 0 for row in run)
    return (
        candidate.title,
        share(row.on_time for row in run),
        latest(run),
        share(row.usable for row in run),
        share(not row.running for row in run),
        tokens(late, any(row.tokens_open for row in run)),
        share(row.kept == "yes" for row in partly),
        share(row.next_turn.startswith("yes") for row in run),
        candidate.how,
    )


def share(marks: Any) -> str:
    listed = list(marks)
    return f"{sum(listed)} of {len(listed)}"


def latest(rows: Sequence[Row]) -> str:
    """Return the worst of all runs, those that were repeated included."""
    worst = max(row.latest for row in rows)
    return f"{worst:.2f} s" if math.isfinite(worst) else "never"


def text(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table in plain text, which is Markdown as well."""
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    rows = [dict(zip(head, line, strict=True)) for line in escaped]
    return Sheet("", "", dict.fromkeys(head, ""), rows).table()


def tables(rows: dict[Candidate, list[Row]]) -> str:
    """Return the condensed table, and the one with all rows."""
    short = [condensed(candidate, each) for candidate, each in rows.items()]
    every = [cells(row) for each in rows.values() for row in each]
    return f"{text(CONDENSED, short)}\n\n{text(ROWS, every)}"


def summary(about: dict[str, Any]) -> str:
    """Return where and when, and which versions, as two sentences."""
    known = {
        f"{name} {number}"
        for each in about["environments"].values()
        for name, number in each.items()
    }
    return (
        f"Measured on {about['date']} by `{about['command']}` with Python "
        f"{about['python']} on {about['system']}. Versions: {', '.join(sorted(known))}."
    )


def write(
    rows: dict[Candidate, list[Row]], about: dict[str, Any], folder: Path
) -> None:
    """Write the rows as `peers.json` and `peers.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = [row.listed() for each in rows.values() for row in each]
    content = json.dumps({**about, "rows": listed}, indent=2)
    (folder / "peers.json").write_text(f"{content}\n")
    said = f"{summary(about)}\n\n{NOTE}\n\n{tables(rows)}\n"
    (folder / "peers.md").write_text(said)
