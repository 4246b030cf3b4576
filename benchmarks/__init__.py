"""What a deadline costs: the bars of the design, side by side with plain LangGraph."""
