"""The command line against a reward server: exit 75 with a checkpoint when it dies, exit 0 by the same command later."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reward_server import reward_server
from surefoot.cli import run
from surefoot.runs import load_manifest, read_jsonl


def test_a_dead_server_is_exit_75_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": f"the film {n}"}) + "\n" for n in range(4)))
    with reward_server(lambda prompt, answer: float(len(answer))) as server:
        server.dead_after = 1
        words = ["ppo", "--model.name=tiny", "--data.prompts=prompts.jsonl", "--rollout.response_length=3"]
        words += ["--ppo.rollout_batch_size=4", "--ppo.total_episodes=12", "--ppo.save_every=3", "--out=out"]
        words += [f"--reward_source.sources=[{server.url}, 'length:1-2']", "--reward_source.weights=[1.0, 0.5]"]
        words += ["--reward_source.max_retries=1", "--reward_source.retry_wait=0.01"]
        assert run(words) == 75
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith(f"Paused: {server.url}: no scores in 2 attempts; the last: it answered 503")
        assert (load_manifest(Path("out"))["status"], Path("out/checkpoint-1").is_dir()) == ("interrupted", True)
        server.dead_after = None
        assert run(words) == 0
    rows = read_jsonl(Path("out/metrics.jsonl"))
    assert [row["step"] for row in rows] == [1, 2, 3]
    name = f"127.0.0.1:{server.server_address[1]}"
    for row in rows:
        paid = row[f"rewards/{name}/mean"] + 0.5 * row["rewards/length/mean"]
        assert row["objective/scores"] == pytest.approx(paid, abs=1e-5)
