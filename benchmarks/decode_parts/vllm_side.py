"""vLLM's side, in an environment of its own: `python vllm_side.py '{"model": FOLDER, "dtype": "bfloat16", ...}'`."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # in this process, whose CPU time and memory are told

from decode_parts.work import Decoding
from turn_parts.child import forget_peak, say, wait_for_turn


def main() -> None:
    asked = json.loads(sys.argv[1])
    if asked["threads"]:
        os.environ["OMP_NUM_THREADS"] = str(asked["threads"])
    from vllm import LLM, SamplingParams

    sys.stdout = sys.stderr  # vLLM prints; standard output is the parent's
    settings = {"max_model_len": 1024, "seed": 0, "enable_prefix_caching": False}
    if asked["device"] == "cpu":
        settings["gpu_memory_utilization"] = 0.5  # on a CPU it is the share of its memory, and the other sides have some
    engine = LLM(model=asked["model"], dtype=asked["dtype"], **settings)
    vocabulary = engine.llm_engine.model_config.get_vocab_size()
    say(ready=True, threads=asked["threads"])
    while True:
        work = Decoding(**wait_for_turn())
        prompts = [{"prompt_token_ids": ids} for ids in work.prompts(vocabulary)]
        params = [SamplingParams(temperature=1.0, max_tokens=n, ignore_eos=True, logprobs=0) for n in work.lengths()]
        forget_peak()
        start, cpu = time.perf_counter(), time.process_time()
        made = engine.generate(prompts, params, use_tqdm=False)
        tokens = sum(len(one.outputs[0].token_ids) for one in made)
        say(seconds=time.perf_counter() - start, cpu=time.process_time() - cpu, tokens=tokens)


if __name__ == "__main__":
    main()
