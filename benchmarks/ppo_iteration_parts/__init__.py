"""Parts of benchmarks/ppo_iteration.py: the work, the two sides that do it, and the floor below which arithmetic cannot go."""
