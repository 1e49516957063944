"""A conversation with a model, on a terminal."""

from __future__ import annotations

import io
import sys

import torch

from surefoot.config import Config
from surefoot.lm.backbone import load_backbone
from surefoot.lm.tokens import pad_left
from surefoot.rollout.local import LocalEngine
from surefoot.stages.names import model_of
from surefoot.types import Prompts


def run(model: str, cfg: Config) -> None:
    """Reads lines until an empty one or the end of input. A chat keeps the conversation; otherwise text is continued."""
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a letter that cannot be read or shown is a question mark
    backbone = load_backbone(cfg.model.model_copy(update={"name": model_of(model)}))
    chat = cfg.model.template != "plain" and bool(backbone.codec.tokenizer.chat_template) and cfg.model.template == "chat"
    engine = LocalEngine(backbone, cfg.rollout, adapter=None, keeps_packed=True)
    generator = torch.Generator().manual_seed(cfg.seed)
    print(
        f"{model_of(model)}: {'a chat' if chat else 'text to continue; --model.template chat for a chat'}. An empty line ends it."
    )
    said: list[dict[str, str]] = []
    while line := _line():
        said.append({"role": "user", "content": line})
        ids, mask = pad_left([backbone.codec.prompt_ids(said if chat else line)], backbone.codec.pad_id)
        answer = engine.generate(Prompts(ids, mask, (line,), ("chat",)), generator).text[0]
        said.append({"role": "assistant", "content": answer})
        print(answer if chat else line + answer)


def _line() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""
