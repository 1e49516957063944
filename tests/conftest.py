"""Property tests have no deadline: on a machine that others use, the time of one example says nothing about the code."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("surefoot", deadline=None)
settings.load_profile("surefoot")
