"""Ask the agent with time enough, without, and without from sync code."""

import asyncio
import io
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from langgraph_deadline import collect_runs

from .agent import (
    QUESTION,
    ScriptedModel,
    answer_from_what_is_there,
    build_agent,
    script,
)
from .library import build_index, build_tools
from .service import SlowService

INPUTS: Any = {"messages": [("user", QUESTION)]}


def main() -> None:
    """Run the demo; it takes about eight seconds."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # keeps its place among the logs
    with tempfile.TemporaryDirectory() as folder, SlowService(seconds=2.0) as service:
        database = Path(folder, "passages.db")
        print(f"Indexed {build_index(database)} passages in SQLite.")
        print(f"A service on loopback takes {service.seconds:g} s for every answer.")
        print(textwrap.fill(f"Question: {QUESTION}", 88))
        model = ScriptedModel(turns=script(service.url))
        graph = build_agent(model, build_tools(database)).compile(
            deadline=10, fallback=answer_from_what_is_there
        )
        show(
            "Time enough: deadline=10",
            lambda: asyncio.run(graph.ainvoke(INPUTS)),
            service,
        )
        show(
            "Too little: deadline=1.5",
            lambda: asyncio.run(graph.ainvoke(INPUTS, deadline=1.5)),
            service,
        )
        show(
            "Too little, from sync code: its thread cannot be stopped, only given up",
            lambda: graph.invoke(INPUTS, deadline=1.5),
            service,
        )


def show(title: str, run: Callable[[], Any], service: SlowService) -> None:
    """Run the graph; print its answer and its report."""
    print(f"\n{title}\n{'-' * len(title)}")
    with collect_runs() as runs:
        result = run()
    (report,) = runs
    for line in result["messages"][-1].text.splitlines():
        print(_wrap(line))
    print()
    visit = service.last_visit()
    time.sleep(0.1)  # for what was given up to learn that the service has answered
    print(textwrap.indent(str(report), "  "))
    print(f"  The service saw: {visit}")


def _wrap(line: str) -> str:
    hanging = " " * 18
    return textwrap.fill(line, 88, initial_indent="  ", subsequent_indent=hanging)


if __name__ == "__main__":
    main()
