"""The catalogue of faults: what fails, where, and how the run is driven.

`catalogue` crosses the tables of `bodies`, `places` and `driving`; `cell` runs one cell
of it, and `invariants` is what must hold in every one, checked by the same code.
"""
