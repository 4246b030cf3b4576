"""The harness of the comparison with peers: its model, its work, its rows."""

from __future__ import annotations

import asyncio
import importlib
import json
import socket
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import drive, environments, report, run, work
from benchmarks.peers.environments import Environment
from benchmarks.peers.peers import ALL, Candidate
from benchmarks.peers.run import Row
from benchmarks.peers.server import Model, Request, open_calls, reply

ASKED = {"role": "user", "content": work.ASK}
CALL = {"role": "assistant", "tool_calls": [{"id": "1"}, {"id": "2"}]}


def answer(call: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call, "content": "found"}


def post(model: Model, case: str, messages: list[Any], **more: Any) -> Any:
    body = json.dumps({"model": "any", "messages": messages, **more}).encode()
    url = f"{model.url}/{case}/v1/chat/completions"
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=10) as said:
        return said.read().decode()


# The model.


def test_the_model_asks_for_both_tools_and_then_answers():
    said = [reply("well", 1, [ASKED, *[answer("1")] * done]).tool for done in range(3)]
    assert said == ["look_up", "research", None]


def test_the_model_answers_a_second_turn_at_once_and_in_full():
    for case in work.CASES:
        again = reply(case, 2, [ASKED, {"role": "user", "content": work.AGAIN}])
        assert (again.tool, again.tokens) == (None, 5)


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([ASKED], []),
        ([ASKED, CALL, answer("1"), answer("2")], []),
        ([ASKED, CALL, answer("1")], ["2"]),
        ([ASKED, CALL, ASKED, answer("1"), answer("2")], ["1", "2"]),
    ],
)
def test_a_tool_call_must_be_answered_before_anything_else(messages, expected):
    assert open_calls(messages) == expected


@pytest.mark.realtime
def test_the_model_refuses_an_open_history_and_serves_on():
    with Model() as model:
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(model, "well", [ASKED, CALL])
        with refused.value as response:
            assert response.status == 400
            assert "'1', '2'" in json.loads(response.read())["error"]["message"]
        whole = json.loads(post(model, "well", [ASKED]))
    call = whole["choices"][0]["message"]["tool_calls"][0]
    assert call["function"]["name"] == "look_up"
    assert [len(request.tokens) for request in model.requests] == [5]


@pytest.mark.realtime
def test_a_stream_says_what_a_whole_answer_says():
    done = [ASKED, CALL, answer("1"), answer("2")]
    with Model() as model:
        whole = json.loads(post(model, "well", done))["choices"][0]["message"]
        lines = post(model, "well", done, stream=True).split("\n\n")
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    assert "".join(delta.get("content", "") for delta in deltas) == whole["content"]
    assert whole["content"].startswith(work.WORD)
    assert whole["content"].endswith(work.END)


def leave(model: Model, *, stream: bool) -> Request:
    """Ask for an answer without end, and leave."""
    messages = [ASKED, CALL, answer("1"), answer("2")]
    body = json.dumps({"messages": messages, "stream": stream}).encode()
    head = f"POST /streams/v1 HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", model.server_port)) as client:
        client.sendall(head + body)
        wait_until(lambda: model.requests and model.requests[0].tokens)
    return model.requests[0]


def wait_until(true: Any) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.realtime
def test_who_leaves_a_stream_ends_it():
    with Model() as model:
        request = leave(model, stream=True)
        wait_until(lambda: request.ended)
    assert request.left
    assert len(request.tokens) < 1500


@pytest.mark.realtime
def test_who_leaves_a_call_that_is_not_streamed_pays_for_it():
    with Model() as model:
        request = leave(model, stream=False)
        some = len(request.tokens)
        wait_until(lambda: len(request.tokens) > some + 10)
        assert model.active == 1


# The work, and what a driver sees of it.


class Stub:
    """A peer that does what it is told, in place of an SDK."""

    def __init__(self, setup: drive.Setup) -> None:
        self.setup = setup
        self.turns = 0

    async def turn(self, text: str, deadline: float) -> str:
        self.turns += 1
        if self.setup.case == "well" or self.turns > 1:
            return f"{work.WORD} {work.END}"
        found = await self.setup.look_up()("word")
        assert found == work.FOUND
        self.orphan = asyncio.ensure_future(self.setup.research()("topic"))
        raise TimeoutError(deadline)

    async def kept(self) -> str | None:
        return work.FOUND


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setattr(work, "DEADLINE", 0.2)
    monkeypatch.setattr(work, "LINGER", 0.1)


@pytest.mark.realtime
async def test_a_driver_sees_the_error_and_what_still_runs(hurried):
    seen = await drive.observe(Stub, "", "hangs", "http://nowhere")
    assert (seen["got"], seen["error"], seen["message"]) == (
        "error",
        "TimeoutError",
        "0.2",
    )
    assert seen["tools"] == ["research"]
    assert seen["found"]
    assert seen["kept"]
    assert seen["next"]["got"] == "answer"


@pytest.mark.realtime
async def test_a_peer_that_does_not_answer_without_faults_is_an_error(hurried):
    class Mute(Stub):
        async def turn(self, text: str, deadline: float) -> str:
            return ""

    with pytest.raises(RuntimeError, match="without a deadline to meet"):
        await drive.observe(Mute, "", "hangs", "http://nowhere")


@pytest.mark.realtime
async def test_a_tool_that_swallows_its_cancellation_goes_on(monkeypatch):
    monkeypatch.setattr(work, "STUBBORN", 0.3)
    log = work.Log()
    task = asyncio.ensure_future(work.research("swallows", log)("topic"))
    await asyncio.sleep(0.01)
    task.cancel()
    assert await task == "All there is to know."
    assert not log.running
    assert [name for name, _ in log.finished] == ["research"]


async def test_retries_inside_a_tool_are_bounded(monkeypatch):
    monkeypatch.setattr(work, "BACKOFF", 0.0)
    log = work.Log()
    with pytest.raises(ConnectionError):
        await work.retried(work.research("retries", log))("topic")
    assert len(log.started) == work.ATTEMPTS


@pytest.mark.parametrize("case", work.CASES)
def test_the_work_that_fits_fits_unless_something_is_kept_in_reserve(case):
    took = 5 * work.pause(case)
    kept = work.DEADLINE * 0.8 < took < work.DEADLINE
    assert kept == (case == "fits")


@pytest.mark.realtime
@pytest.mark.parametrize(
    ("driver", "variant", "deadline"),
    [("langgraph_alone", "timeout/5/handled", 5.0), ("wait_for", "fallback", 2.5)],
)
async def test_what_one_can_build_by_hand_closes_the_conversation(
    driver, variant, deadline
):
    built = importlib.import_module(f"benchmarks.peers.drivers.{driver}")
    with Model() as model:
        url = f"{model.url}/hangs/v1"
        peer = built.build(drive.Setup("hangs", url, work.Log(), variant))
        assert await peer.turn(work.ASK, deadline) == work.SORRY
        assert work.FOUND in await peer.kept()
        assert work.END in await peer.turn(work.AGAIN, drive.GENEROUS)
        assert not model.refused
        assert model.requests[-1].remembers


# The rows.


def seen(**more: Any) -> dict[str, Any]:
    return {
        "began": 100.0,
        "elapsed": 2.01,
        "looked": 3.01,
        "got": "error",
        "error": "TimeoutError",
        "found": True,
        "kept": True,
        "tools": [],
        "tasks": [],
        "started_late": [],
        "next": {"got": "answer"},
        "again": [],
        **more,
    }


def asked(began: float, *tokens: float, turn: int = 1, **more: Any) -> Request:
    return Request("any", turn, True, True, began, list(tokens), **more)


def row_of(*requests: Request, **more: Any) -> Row:
    with Model() as model:
        model.requests += requests
        return run.row("A peer", "hangs", seen(**more), model)


def test_tokens_after_the_deadline_are_those_of_the_first_turn():
    row = row_of(
        asked(90.0, 91.0, ended=91.0),  # to warm up
        asked(100.0, 101.0, 102.5, 103.5, ended=104.0),
        asked(103.2, 103.3, ended=103.4, turn=2),
    )
    assert (row.tokens_late, row.tokens_open) == (2, False)
    assert row.running == ["model call"]
    assert (row.kept, row.next_turn) == ("yes", "yes")


def test_a_request_without_an_end_is_marked():
    row = row_of(asked(102.5, 102.6), asked(103.2, turn=2, ended=103.3))
    assert report.tokens(row.tokens_late, row.tokens_open) == "1+"
    assert row.started_late == ["model call"]


def test_a_next_turn_that_runs_the_cut_step_again_says_so():
    row = row_of(asked(103.1, ended=103.2), asked(103.2, turn=2, ended=103.3))
    assert row.next_turn == "yes, but what was cut runs again"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"got": "nothing"}, "no"),
        ({"found": False}, "-"),
        ({"kept": None}, "n/a"),
        ({"kept": False}, "no"),
    ],
)
def test_partial_state_is_kept_or_not_or_not_to_be_had(more, expected):
    assert row_of(**more).kept == expected


@pytest.mark.parametrize(
    ("more", "on_time", "cell"),
    [
        ({"elapsed": 2.2}, True, "yes, 2.20 s"),
        ({"elapsed": 2.4}, False, "no, 2.40 s: late by 0.40 s"),
        ({"elapsed": 6.5}, False, "no, 6.50 s: late by 4.50 s"),
        ({"elapsed": 10.0, "got": "nothing"}, False, "no: not in 10 s"),
    ],
)
def test_on_time_is_said_with_the_figure(more, on_time, cell):
    row = row_of(**more)
    assert (row.on_time, report.on_time(row)) == (on_time, cell)


def test_of_two_runs_the_better_one_is_shown():
    late, never = row_of(elapsed=6.5), row_of(elapsed=10.0, got="nothing")
    row = run.better(late, never)
    assert (row.elapsed, row.others) == (6.5, [10.0])
    assert run.better(never, row_of(elapsed=2.0)).elapsed == 2.0


@pytest.mark.parametrize(
    ("elapsed", "others", "expected"),
    [
        (2.2, [], "2.20 s"),
        (2.2, [6.5], "6.50 s"),
        (2.2, [work.BOUND], "never"),
        (2.2, [None], "never"),
    ],
)
def test_the_latest_of_all_runs_is_told(elapsed, others, expected):
    row = row_of(elapsed=elapsed)
    row.others = others
    assert report.latest([row_of(elapsed=0.5), row]) == expected


def command(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.mark.realtime
def test_a_driver_that_fails_leaves_a_row_that_says_why(tmp_path):
    with Model() as model:
        code = "raise SystemExit('no such thing')"
        row = run.observed("A peer", "hangs", command(code), model, tmp_path)
    assert (row.got, row.detail) == ("failed", "no such thing")
    assert "no such thing" in report.cells(row)


@pytest.mark.realtime
def test_a_driver_that_says_nothing_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "PATIENCE", 0.2)
    with Model() as model:
        code = "import time; time.sleep(60)"
        began = time.monotonic()
        row = run.observed("A peer", "hangs", command(code), model, tmp_path)
    assert row.got == "failed"
    assert time.monotonic() - began < 30


@pytest.mark.realtime
def test_a_driver_has_nothing_of_the_users_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    names = run.environment(tmp_path)
    assert "OPENAI_API_KEY" not in names
    assert names["OPENAI_AGENTS_DISABLE_TRACING"] == "1"
    assert names["HOME"] == str(tmp_path)


# The tables.

PEER = Candidate("any", "A peer", "in some way", Environment("any", ("any",)), "any")


def test_a_peer_that_cannot_be_installed_has_a_line_that_says_so(tmp_path):
    row = Row("A peer", "", got="not installed", detail="No matching distribution")
    about = {"date": "today", "command": "c", "python": "3", "system": "s"}
    report.write({PEER: [row]}, {**about, "environments": {}}, tmp_path)
    lines = (tmp_path / "peers.md").read_text().splitlines()
    said = [line for line in lines if line.startswith("| A peer")]
    assert len(said) == 2  # one in each table
    assert all("not installed" in line for line in said)
    assert all("No matching distribution" in line for line in said)
    assert json.loads((tmp_path / "peers.json").read_text())["rows"][0]["peer"]


def test_the_condensed_line_counts_what_can_be_counted():
    rows = [
        Row(
            "A peer", "well", 0.5, "answer", kept="yes", next_turn="yes", tokens_late=0
        ),
        Row("A peer", "hangs", 9.0, "error", running=["x"], kept="-", tokens_late=7),
    ]
    assert report.condensed(PEER, rows) == (
        "A peer",
        "1 of 2",
        "9.00 s",
        "1 of 2",
        "1 of 2",
        "7",
        "1 of 1",
        "1 of 2",
        "in some way",
    )


def test_a_bar_in_a_cell_does_not_end_it():
    table = report.text(("a", "b"), [("x|y", "z")])
    assert table.splitlines()[-1] == "| x\\|y | z |"


def test_what_pip_says_is_kept_without_addresses():
    output = "WARNING: x\nERROR: No match for any (from https://a.b/simple at /c/d/e)\n"
    assert environments.reason(output) == "No match for any (from ... at ..."


def test_every_candidate_has_a_driver_and_a_name_of_its_own():
    folder = Path(drive.__file__).parent / "drivers"
    assert len({each.name for each in ALL}) == len(ALL)
    for each in ALL:
        assert (folder / f"{each.driver}.py").is_file()
