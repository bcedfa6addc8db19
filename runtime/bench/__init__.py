"""How fast a bundle restores here: latency, frames a second, where the time goes, and whether it got slower.

`vsr bench` is the command line; `runtime.bench.bench.run` does the same for programs.
"""
