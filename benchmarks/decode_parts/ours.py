"""Surefoot's side: `python -m decode_parts.ours '{"model": FOLDER, "dtype": "bfloat16", ...}'`."""

from __future__ import annotations

import json
import sys
import time

import torch
from torch import Tensor

from decode_parts.work import Decoding
from surefoot.config import ModelConfig, RolloutConfig
from surefoot.launch import keep_freed_memory, set_threads
from surefoot.lm.adapters import add_adapter
from surefoot.lm.backbone import load_backbone
from surefoot.lm.tokens import pad_left
from surefoot.rollout.local import LocalEngine
from surefoot.types import Prompts
from turn_parts.child import forget_peak, say, wait_for_turn


class GivenLengths(LocalEngine):
    """Answers end after as many tokens as they are given, whatever was drawn."""

    lengths: Tensor

    def is_last(self, rows: Tensor, steps: Tensor, token: Tensor) -> Tensor:
        return (steps + 1 >= self.lengths[rows]).to(token.device)


def main() -> None:
    asked = json.loads(sys.argv[1])
    set_threads(asked["threads"])
    cfg = ModelConfig(name=asked["model"], dtype=asked["dtype"])
    backbone = load_backbone(cfg, asked["device"])
    if asked["lora"]:
        add_adapter(backbone.model, "policy", cfg, seed=0)
    say(ready=True, threads=torch.get_num_threads())
    keep_freed_memory()  # after what is held was told: loading leaves pages that are nobody's
    adapter = "policy" if asked["lora"] else None
    engine = GivenLengths(backbone, RolloutConfig(), adapter=adapter, keeps_packed=True)  # one for all turns, as in a run
    while True:
        work = Decoding(**wait_for_turn())
        ids, mask = pad_left(work.prompts(backbone.model.config.vocab_size), backbone.codec.pad_id)
        names = tuple(str(i) for i in range(work.rows))
        engine.cfg = RolloutConfig(response_length=work.response, batch_size=work.rows)
        engine.lengths = torch.tensor(work.lengths())
        forget_peak()
        start, cpu = time.perf_counter(), time.process_time()
        made = engine.generate(Prompts(ids, mask, names, names), torch.Generator().manual_seed(0))
        say(seconds=time.perf_counter() - start, cpu=time.process_time() - cpu, tokens=int(made.mask.sum()))


if __name__ == "__main__":
    main()
