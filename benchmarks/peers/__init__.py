"""The same work and the same faults for all peers: `python -m benchmarks.peers`.

Each peer runs in a virtual environment of its own, as a process of its own. What is
imported there (`work`, `drive`, `drivers`) needs nothing but the standard library and
that peer.
"""
