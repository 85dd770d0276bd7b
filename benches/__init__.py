"""Benchmarks: `python -m benches.figures` measures every published number, `pytest benches` asserts them."""
