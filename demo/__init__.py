"""An agent under a deadline: `python -m demo`. No key, no network but loopback."""
