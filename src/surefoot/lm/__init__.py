"""Language models: backbones, the four roles on them, tokens and data."""

from transformers.utils import logging

logging.disable_progress_bar()  # loading shows through surefoot's own progress
