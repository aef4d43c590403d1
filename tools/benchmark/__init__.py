"""Benchmark of detectors, side by side: `python -m tools.benchmark`, see docs/benchmarks.md.

architectures   config keys and stages of each meta-architecture
models          from the command line's words to a model that takes BGR images
variants        ways to run a model, such as mixed precision
images          the images that all models get
timing          interleaved rounds, statistics, the clock that divides time among stages
memory          peak memory, in a process of its own
training        training steps on random ground truth
measure         all measurements, one after the other
report          tables, JSON and the plot
"""
