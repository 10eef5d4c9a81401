"""The storm: faults injected into the whole server under load, and what they cost, counted. `make storm`, or in parts:

    python -m tests.faults.storm --only kill --kills 300 --seed 7

Each part breaks one thing again and again while calls go on, lets peace return, and then judges what the receivers were told by
the rules of `verdict.py`. Nothing looks into the store: what counts is what customers got, what /health and the log said, and how
the process ended.
"""
