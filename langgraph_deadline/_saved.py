"""What is in a run's checkpoints, as its engine has read and written them."""

from __future__ import annotations

from typing import Any

from ._record import Record


class Saved:
    """A run's place in its thread; filled in when its checkpoint is loaded."""

    __slots__ = (
        "config",
        "deferring",
        "loaded",
        "namespace",
        "new_input",
        "one_superstep",
        "possible",
        "record",
        "reset",
        "saver",
        "sequence",
    )

    def __init__(self) -> None:
        self.saver: Any = None
        self.possible = True
        """Whether there may be a checkpointer at all."""
        self.config: Any = None
        """Of the newest checkpoint."""
        self.namespace = ""
        self.loaded = False

        self.new_input = True
        """It is not resumed."""
        self.reset = False
        """The run before left something half done, which a new one has to clear."""
        self.record: Record | None = None
        """Of the run that is resumed, until it has been taken over."""
        self.sequence = 0
        """How many records have been written beside the newest checkpoint."""

        self.one_superstep = False
        """It saves no state before its end (functional graphs)."""
        self.deferring = False
        """What looks like its end is not: a deferred node comes."""
