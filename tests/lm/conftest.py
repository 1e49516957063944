"""The tiny language model of the session."""

from tiny_fixtures import backbone, model, tokenizer

__all__ = ["backbone", "model", "tokenizer"]
