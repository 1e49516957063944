"""Human preferences: the store of prompts, answers and votes. Needs no torch: an annotator's laptop is enough."""

from surefoot.preferences.store import Counts, Pair, PreferenceStore
from surefoot.preferences.votes import CHOICES, Choice, Outcome, Preference, Vote, outcome

__all__ = ["CHOICES", "Choice", "Counts", "Outcome", "Pair", "Preference", "PreferenceStore", "Vote", "outcome"]
