"""One module per peer: how its own documentation says that a run is limited."""
