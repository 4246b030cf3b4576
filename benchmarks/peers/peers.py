"""The peers: what is installed for each, which driver runs it, and how."""

from __future__ import annotations

from dataclasses import dataclass

from .environments import Environment

_LANGGRAPH = Environment("langgraph", ("langgraph", "langchain-openai"))
_CREWAI = Environment("crewai", ("crewai",))
_OURS = Environment(
    "langgraph_deadline", ("langgraph", "langchain-openai"), "langgraph-deadline"
)


@dataclass(frozen=True)
class Candidate:
    """One row of the condensed table: a peer, used in one way."""

    name: str  # for `--only`
    title: str
    how: str  # the mechanism, in a few words
    environment: Environment
    driver: str
    variant: str = ""


ALL = (
    Candidate(
        "step-timeout",
        "LangGraph, `step_timeout=2`",
        "limits each step; a run has no limit of its own",
        _LANGGRAPH,
        "langgraph_alone",
        "step_timeout",
    ),
    Candidate(
        "step-timeout-fifth",
        "LangGraph, `step_timeout=0.4`",
        "the same, a fifth of the deadline for each of the five steps",
        _LANGGRAPH,
        "langgraph_alone",
        "step_timeout/5",
    ),
    Candidate(
        "node-timeout",
        "LangGraph, `timeout=2`",
        "limits each attempt of a node; a run has no limit of its own",
        _LANGGRAPH,
        "langgraph_alone",
        "timeout",
    ),
    Candidate(
        "node-timeout-fifth",
        "LangGraph, `timeout=0.4`",
        "the same, a fifth of the deadline for each of the five steps",
        _LANGGRAPH,
        "langgraph_alone",
        "timeout/5",
    ),
    Candidate(
        "node-timeout-handled",
        "LangGraph, `timeout=0.4`, error handlers",
        "the same, and an `error_handler` of each node closes the conversation",
        _LANGGRAPH,
        "langgraph_alone",
        "timeout/5/handled",
    ),
    Candidate(
        "wait-for",
        "`asyncio.wait_for` around LangGraph",
        "cancels the run from outside",
        _LANGGRAPH,
        "wait_for",
    ),
    Candidate(
        "wait-for-fallback",
        "`asyncio.wait_for` and a second graph",
        "cancels the run at 1.6 s; a second graph closes the conversation, by hand",
        _LANGGRAPH,
        "wait_for",
        "fallback",
    ),
    Candidate(
        "node-deadline",
        "langgraph-node-deadline",
        "one scope around the run; nodes clamp what they await and salvage",
        Environment(
            "node_deadline",
            ("langgraph-node-deadline", "langgraph", "langchain-openai"),
        ),
        "node_deadline",
    ),
    Candidate(
        "pydantic-ai",
        "PydanticAI, `run(timeout=2)`",
        "limits the run; the error carries the history",
        Environment("pydantic_ai", ("pydantic-ai-slim[openai]",)),
        "pydantic_ai",
    ),
    Candidate(
        "crewai-kickoff",
        "CrewAI, `max_execution_time=2`, `kickoff`",
        "limits an agent's task; the sync call",
        _CREWAI,
        "crewai",
        "kickoff",
    ),
    Candidate(
        "crewai-akickoff",
        "CrewAI, `max_execution_time=2`, `akickoff`",
        "limits an agent's task; the async call",
        _CREWAI,
        "crewai",
        "akickoff",
    ),
    Candidate(
        "openai-agents",
        "OpenAI Agents SDK, `asyncio.wait_for`",
        "a run has no limit in time; `cancel()` of the streamed run in its case",
        Environment("openai_agents", ("openai-agents",)),
        "openai_agents",
    ),
    Candidate(
        "llama-index",
        "LlamaIndex Workflows, `timeout=2`",
        "limits the run; the context is passed on",
        Environment("llama_index", ("llama-index-workflows", "openai")),
        "llama_index",
    ),
    Candidate(
        "ours",
        "langgraph-deadline, with a fallback",
        "`deadline=2`, `agent_fallback`, a wrapped model; work is cut at 1.6 s",
        _OURS,
        "ours",
        "fallback",
    ),
    Candidate(
        "ours-alone",
        "langgraph-deadline, `deadline=2` alone",
        "limits the run; raises; the model is not wrapped",
        _OURS,
        "ours",
        "alone",
    ),
)
