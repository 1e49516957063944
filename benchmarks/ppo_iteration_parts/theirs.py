"""TRL 1.12's side of work W, in an environment of its own: `python theirs.py '{"work": {...}, "tuning": "lora", ...}'`.

TRL's trainer runs its iterations in one loop, so a callback at the end of each hands the turn back.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import time
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer

from ppo_iteration_parts.work import Work
from turn_parts.child import say, wait_for_turn


class Turns(TrainerCallback):  # type: ignore[misc]
    """Ends an iteration with a line, and waits for the next turn."""

    def __init__(self, tokens: int) -> None:
        self.tokens, self.start, self.cpu = tokens, 0.0, 0.0

    def begin(self) -> None:
        wait_for_turn()
        self.start, self.cpu = time.perf_counter(), time.process_time()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        say(seconds=time.perf_counter() - self.start, cpu=time.process_time() - self.cpu, tokens=self.tokens)
        self.begin()


def main() -> None:
    asked = json.loads(sys.argv[1])
    if asked["threads"]:
        torch.set_num_threads(asked["threads"])
    work, folder = Work(**asked["work"]), asked["model"]
    sys.stdout = sys.stderr  # the trainer prints; standard output is the parent's
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    policy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompts = work.prompts(policy.config.vocab_size)
    value, reward = (
        AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32) for _ in range(2)
    )
    for model in (policy, value, reward):
        if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(len(tokenizer))
        model.config.pad_token_id = tokenizer.pad_token_id
    lora = None
    if asked["tuning"] == "lora":
        from peft import LoraConfig

        lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    args = PPOConfig(
        output_dir=mkdtemp(),
        per_device_train_batch_size=work.micro_batch,
        gradient_accumulation_steps=work.rows // work.micro_batch,
        local_rollout_forward_batch_size=work.rows,
        num_ppo_epochs=1,
        num_mini_batches=1,
        total_episodes=work.rows * 10_000,
        response_length=work.response,
        num_sample_generations=0,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1_000_000,
        use_cpu=asked["device"] == "cpu",
        bf16=False,
        gradient_checkpointing=False,
    )
    rows = Dataset.from_list([{"input_ids": ids} for ids in prompts])
    turns = Turns(work.rows * work.response)
    trainer = PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=policy,
        ref_model=None if lora else copy.deepcopy(policy),
        reward_model=reward,
        value_model=value,
        train_dataset=rows,
        eval_dataset=rows,
        peft_config=lora,
        callbacks=[turns],
    )
    say(ready=True, threads=torch.get_num_threads())
    turns.begin()
    trainer.train()


if __name__ == "__main__":
    main()
