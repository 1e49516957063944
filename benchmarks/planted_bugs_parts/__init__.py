"""Parts of planted_bugs.py."""
