"""The parts of `benchmarks/why_ppo.py`: two tasks whose J can be measured, what an update is measured by, KLs, pictures."""
