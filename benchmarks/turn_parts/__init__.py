"""Sides of a comparison as processes that take turns in one run, and the models they load."""
