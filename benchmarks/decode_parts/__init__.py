"""Parts of benchmarks/decode.py: the work and the sides that do it."""
