"""Run LangGraph's own tests against our `StateGraph` and list what differs."""
