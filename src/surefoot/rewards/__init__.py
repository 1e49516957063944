"""Reward sources: one number an answer, or a stated reason why not. A made-up score is never returned."""
