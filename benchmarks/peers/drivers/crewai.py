"""CrewAI: an agent's `max_execution_time`, in whole seconds.

Variants: `kickoff` (from a thread) and `akickoff`. Each turn is a task of its own, done
by the same agent; CrewAI has no conversations. Tools have no back-off of their own: the
retries are a loop inside the tool.

Documentation: "Agents" (`max_execution_time`), "Crews" (`kickoff`, `akickoff`), "LLMs"
(`stream`), "Telemetry" (how to switch it off).
"""

# Only in an environment of its own.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import asyncio
from typing import Any

from crewai import LLM, Agent, Crew, Task
from crewai.tools import tool

from ..drive import Setup


class Conversation:
    def __init__(self, setup: Setup) -> None:
        tools = [setup.look_up(), setup.research(retried=True)]
        self.agent: Any = Agent(
            role="researcher",
            goal="answer questions",
            backstory="You look things up before you answer.",
            llm=LLM(
                model=f"openai/{setup.model}",
                base_url=setup.url,
                api_key=setup.key,
                stream=setup.streaming,
            ),
            tools=[tool(each.__name__)(each) for each in tools],
        )
        self.native = setup.variant == "akickoff"

    async def turn(self, text: str, deadline: float) -> str:
        self.agent.max_execution_time = int(deadline)
        task = Task(description=text, expected_output="an answer", agent=self.agent)
        crew = Crew(agents=[self.agent], tasks=[task], tracing=False)
        if self.native:
            return str((await crew.akickoff()).raw)
        return str((await asyncio.to_thread(crew.kickoff)).raw)

    async def kept(self) -> str | None:
        return str(self.agent.last_messages)


def build(setup: Setup) -> Conversation:
    return Conversation(setup)
