"""transformers' side, `model.generate`: `python -m decode_parts.theirs '{"model": FOLDER, "dtype": "bfloat16", ...}'`."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, StoppingCriteria, StoppingCriteriaList

from decode_parts.work import Decoding
from surefoot.launch import set_threads
from surefoot.lm.tokens import pad_left
from turn_parts.child import forget_peak, say, wait_for_turn


class GivenLengths(StoppingCriteria):  # type: ignore[misc]
    """Ends each row after as many tokens as it is given."""

    def __init__(self, prompt: int, lengths: list[int]) -> None:
        self.prompt, self.lengths = prompt, torch.tensor(lengths)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return input_ids.shape[1] - self.prompt >= self.lengths.to(input_ids.device)


def main() -> None:
    asked = json.loads(sys.argv[1])
    set_threads(asked["threads"])
    model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=getattr(torch, asked["dtype"])).to(asked["device"]).eval()
    model.generation_config = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=0)
    say(ready=True, threads=torch.get_num_threads())
    while True:
        work = Decoding(**wait_for_turn())
        ids, mask = (x.to(asked["device"]) for x in pad_left(work.prompts(model.config.vocab_size), 0))
        torch.manual_seed(0)
        forget_peak()
        start, cpu = time.perf_counter(), time.process_time()
        ends = StoppingCriteriaList([GivenLengths(ids.shape[1], work.lengths())])
        model.generate(ids, attention_mask=mask.long(), max_new_tokens=work.response, stopping_criteria=ends)
        if asked["device"] != "cpu":
            torch.cuda.synchronize()
        say(seconds=time.perf_counter() - start, cpu=time.process_time() - cpu, tokens=sum(work.lengths()))


if __name__ == "__main__":
    main()
