"""One tokenizer and one model for the whole session; each test gets a backbone of its own, since adapters go in place."""

from typing import Any

import pytest

from surefoot.lm.backbone import Backbone
from tiny_language import make_backbone, make_model, make_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="session")
def model(tokenizer: Any) -> Any:
    """Not to be changed: copy it."""
    return make_model(tokenizer)


@pytest.fixture
def backbone(model: Any, tokenizer: Any) -> Backbone:
    return make_backbone(model, tokenizer)
