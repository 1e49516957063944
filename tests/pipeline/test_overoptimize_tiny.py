"""The over-optimisation lab through the command line: it ends, resumes bit for bit, shares what can be shared, is joined."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import surefoot
from surefoot.build_rewards import judges_of
from surefoot.cli import run
from surefoot.config_file import load_config
from surefoot.diagnostics.metrics import is_known
from surefoot.errors import ModelError
from surefoot.lm.tiny import tiny_model_folder
from surefoot.rewards.model import text_judge
from surefoot.runs import hash_folder, load_manifest, read_jsonl
from surefoot.stages.overoptimize import noisy, variants

SHORT = (
    *("--sft.max_steps=4", "--reward.max_steps=4", "--ppo.total_episodes=96", "--ppo.rollout_batch_size=32"),
    *("--ppo.micro_batch_size=32", "--overoptimize.num_prompts=8", "--overoptimize.best_of=4", "--rollout.batch_size=16"),
    *("--overoptimize.resamples=100", "--evaluate.judges=gold"),
)
FREE, TETHERED = "free ppo.kl_coef=0", "tethered ppo.kl_coef=1"


def words_of(names: list[str], every: int) -> list[str]:
    study = (f"--overoptimize.variants={json.dumps(names)}", f"--overoptimize.eval_every={every}")
    return ["overoptimize", "--preset", "tiny", *SHORT, *study]


def lab(out: Path, names: list[str], *words: str, every: int = 1) -> int:
    return run([*words_of(names, every), *words, "--out", str(out)])


def made(out: Path) -> dict[str, Any]:
    """All that two equal studies must have in common."""
    found: dict[str, Any] = {name: (out / name).read_bytes() for name in ("curves.json", "overoptimize.json")}
    for folder in sorted(path for path in out.iterdir() if path.is_dir()):
        found |= {f"{folder.name} {name}": (folder / name).read_bytes() for name in ("metrics.jsonl", "samples.jsonl")}
        if (folder / "final").exists():
            found[f"{folder.name} final"] = hash_folder(folder / "final")
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lab") / "run"
    assert lab(out, [FREE, TETHERED]) == 0
    return out


def test_a_study_shares_what_its_variants_share_and_looks_at_each_on_the_way(whole: Path) -> None:
    folders = sorted(path.name for path in whole.iterdir() if path.is_dir())
    assert folders == [f"seed-0-{name}" for name in ("pool", "ppo-free", "ppo-tethered", "reward-free", "scores-free", "sft")]
    rows = read_jsonl(whole / "seed-0-ppo-free/metrics.jsonl")
    assert [row["step"] for row in rows if "held_out/kl" in row] == [1, 2, 3]
    assert [key for row in rows for key in row if not is_known(key)] == []
    assert all(row["held_out/kl"] >= 0 for row in rows) and rows[-1]["held_out/kl"] > 0
    found = json.loads((whole / "overoptimize.json").read_text())
    assert [v["name"] for v in found["variants"]] == ["free", "tethered"] and found["main"] == "gold"
    free, tethered = found["variants"]
    assert [p["update"] for p in free["ppo"]["points"]] == [1, 2, 3]
    assert [p["n"] for p in free["best_of_n"]["points"]] == [1, 2, 3, 4]
    assert free["best_of_n"]["points"][0]["gain"]["reward"]["value"] == pytest.approx(0, abs=1e-6)
    assert free["best_of_n"] == tethered["best_of_n"], "one pool and one reward"
    assert free["ppo"]["points"][-1]["kl"] > tethered["ppo"]["points"][-1]["kl"], "the tether holds it"
    assert free["ppo"]["fit"]["gold"]["alpha"]["low"] <= free["ppo"]["fit"]["gold"]["alpha"]["value"]
    assert load_manifest(whole)["facts"]["verdict"][0].startswith("free: ")


def test_the_points_of_the_curve_are_those_of_the_run(whole: Path) -> None:
    curves = json.loads((whole / "curves.json").read_text())
    (seed,) = curves["seeds"]
    rows = read_jsonl(whole / "seed-0-ppo-free/metrics.jsonl")
    for row, kl, proxy, gold in zip(
        rows, *(seed["variants"]["free"][k] for k in ("kl", "proxy")), seed["variants"]["free"]["gold"]["gold"], strict=True
    ):
        assert len(kl) == 8
        assert [sum(x) / 8 for x in (kl, proxy, gold)] == pytest.approx(
            [row["held_out/kl"], row["held_out/score"], row["held_out/judge/gold"]], abs=1e-5
        )
    assert [len(row) for row in seed["pool"]["gold"]] == [4] * 8


def test_the_report_shows_the_study(whole: Path) -> None:
    page = (whole / "report.html").read_text()
    for words in (
        "Over-optimisation",
        "All variants by gold",
        "Fitted laws",
        "Turns in the data",
        "best of n",
        "free: ppo.kl_coef=0",
    ):
        assert words in page
    assert run(["report", str(whole)]) == 0


def killed_at(site: str, out: Path) -> bool:
    """Whether a study dies at the named site, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(Path(surefoot.__file__).parents[1]), "SUREFOOT_FAULT": f"{site}:kill"}
    command = [sys.executable, "-m", "surefoot", *words_of([FREE, TETHERED], 1), "--out", str(out)]
    return subprocess.run(command, env=environment, capture_output=True, check=False).returncode == -signal.SIGKILL


def test_killed_in_the_pool_in_an_update_and_at_the_end_a_study_ends_with_the_bytes_of_a_whole_one(
    whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    for site in ("checkpoint-after:16", "backward:2", "final-rename:3"):
        assert killed_at(site, out), f"{site} was not met"
    assert lab(out, [FREE, TETHERED]) == 0
    assert made(out) == made(whole)


def test_looks_move_nothing_and_a_study_stops_at_a_kl_and_stays_stopped(whole: Path, tmp_path: Path) -> None:
    curves = json.loads((whole / "curves.json").read_text())["seeds"][0]["variants"]["free"]["kl"]
    reached = [sum(row) / len(row) for row in curves]
    limit = (reached[0] + reached[1]) / 2
    stopped = f"{FREE} overoptimize.stop_kl={limit}"
    models = ("--overoptimize.models", str(models_of(whole, tmp_path)))
    members = "worst reward.method=head reward.ensemble=2 reward_source.ensemble=min overoptimize.num_labels=64"
    assert lab(tmp_path / "run", [stopped, members], *models, every=2) == 0
    assert len(list((tmp_path / "run/seed-0-reward-worst/final").glob("member-*"))) == 2
    ours, theirs = (read_jsonl(path / "seed-0-ppo-free/metrics.jsonl") for path in (tmp_path / "run", whole))
    assert [row["step"] for row in ours] == [1, 2]
    for mine, other in zip(ours, theirs[:2], strict=True):
        assert {k: v for k, v in other.items() if "held_out" not in k} == {k: v for k, v in mine.items() if "held_out" not in k}
    assert load_manifest(tmp_path / "run/seed-0-ppo-free")["status"] == "done"
    said = [row["message"] for row in read_jsonl(tmp_path / "run/seed-0-ppo-free/events.jsonl")]
    assert [line for line in said if line.startswith("update 2 of ") and line.endswith(f"overoptimize.stop_kl = {limit}")]


def models_of(study: Path, folder: Path) -> Path:
    """The models of a study laid out as the demo leaves them."""
    for name, part in (("sft", "seed-0-sft"), ("reward", "seed-0-reward-free")):
        (folder / "models").mkdir(exist_ok=True)
        (folder / "models" / name).symlink_to(study / part)
    return folder / "models"


def test_parts_with_given_models_are_joined_to_the_study_that_they_are_parts_of(whole: Path, tmp_path: Path) -> None:
    models = ("--overoptimize.models", str(models_of(whole, tmp_path)))
    assert lab(tmp_path / "one", [FREE], *models) == 0
    assert sorted(path.name for path in (tmp_path / "one").iterdir() if path.is_dir()) == [
        "seed-0-pool",
        "seed-0-ppo-free",
        "seed-0-scores-free",
    ]
    assert lab(tmp_path / "two", [TETHERED], *models) == 0
    parts = json.dumps([str(tmp_path / "one"), str(tmp_path / "two")])
    assert (
        run(["overoptimize", f"--overoptimize.join={parts}", "--overoptimize.resamples=100", "--out", str(tmp_path / "all")]) == 0
    )
    assert (tmp_path / "all/curves.json").read_bytes() == (whole / "curves.json").read_bytes()
    assert (tmp_path / "all/overoptimize.json").read_bytes() == (whole / "overoptimize.json").read_bytes()


def test_a_reward_models_folder_is_a_judge_of_texts_that_reads_them_as_it_was_taught(whole: Path) -> None:
    folder = whole / "seed-0-reward-free/final"
    ((name, judge),) = judges_of(load_config(None, [f"--evaluate.judges=[{folder}]"], verb="evaluate")).items()
    assert name == "seed-0-reward-free"
    texts = ["the film was superb and lovely .", "the plot seemed dull .", "the cast was so very fine and good and bright ."]
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder).eval()
    facts = json.loads((folder / "reward.json").read_text())
    for text, said in zip(texts, judge(texts), strict=True):
        row = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            raw = model(input_ids=row).logits[0, 0].item()
        assert said == pytest.approx((raw - facts["mean"]) / facts["deviation"], abs=1e-4)
    with pytest.raises(ModelError, match=r"evaluate.judges = .* cannot be loaded as a reward model"):
        text_judge(whole)


@pytest.mark.parametrize(
    "words, said",
    [
        (["--overoptimize.variants=[a ppo.kl_coeff=0]"], "variants, a: no setting ppo.kl_coeff. Did you mean ppo.kl_coef?"),
        (["--overoptimize.variants=[a rollout.temperature=2]"], "a: rollout.temperature=2 is shared by all variants of a study"),
        (["--overoptimize.variants=[a ppo.kl_coef]"], "a: 'ppo.kl_coef' is no setting. Write for example ppo.kl_coef=0"),
        (["--overoptimize.variants=[a, b, a ppo.kl_coef=0]"], "variants: 'a' stands twice. Give each variant a name of its own."),
        (["--overoptimize.variants=[A/B]"], "variants: 'A/B' is no name for a variant"),
        (["--overoptimize.variants=[]"], "variants = [] leaves nothing to compare"),
        (["--overoptimize.variants=[a ppo.kl_coef=-1]"], "overoptimize.variants, a: ppo.kl_coef = -1 is not allowed"),
        (["--overoptimize.variants=[a reward_source.ensemble=min]"], "has no effect on one reward model. Add reward.ensemble=4."),
        (
            ["--overoptimize.variants=[a reward_source.source=m:f overoptimize.label_noise=0.1]"],
            "a: overoptimize.label_noise=0.1 has no effect, since reward_source names the reward",
        ),
        (["--overoptimize.models=nowhere"], "holds no model. Name the folder of a finished demo"),
        (["--overoptimize.models=nowhere", "--overoptimize.num_seeds=2"], "Write {seed} where the seed stands."),
        (["--overoptimize.label_noise=0.6"], "overoptimize.label_noise = 0.6 is not allowed"),
        (["--overoptimize.stop_kl=0"], "overoptimize.stop_kl = 0 is not allowed"),
        (["--evaluate.num_prompts=3"], "evaluate.num_prompts = 3 has no effect in surefoot overoptimize: overoptimize.num"),
        (["--evaluate.judges=nobody"], "evaluate.judges: no judge 'nobody'. Name vader, minilm, gold, module:function, or a"),
        (["--overoptimize.join=[nowhere]"], "nowhere/curves.json is not there. Name run folders of surefoot overoptimize"),
        (["--overoptimize.join=[a]", "--overoptimize.best_of=8"], "best_of = 8 has no effect: join trains nothing"),
        (["--model.name=MODEL"], "data.prompts is not set. Name the prompts of PPO"),
        (["--model.name=MODEL", "--data.prompts=p.jsonl"], "data.eval_prompts is not set. Name held-out prompts"),
        (["--model.name=MODEL", "--data.prompts=p.jsonl", "--data.eval_prompts=p.jsonl"], "evaluate.judges is empty"),
        (
            ["--model.name=MODEL", "--data.prompts=p.jsonl", "--data.eval_prompts=p.jsonl", "--evaluate.judges=vader"],
            "data.train is not set. Name preferences that the reward learns from",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.jsonl").write_text('{"prompt": "the film"}\n')
    words = [word.replace("MODEL", str(tiny_model_folder())) for word in words]
    base = [] if any(word.startswith("--model.name") for word in words) else ["--model.name=tiny"]
    assert run(["overoptimize", *base, *words, "--out", "run"]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_a_variant_has_the_studys_settings_and_its_own() -> None:
    words = ["--ppo.kl_coef=0.3", "--overoptimize.variants=[a, b reward.layer=2 overoptimize.label_noise=0.25 ppo.gamma=0.5]"]
    a, b = variants(load_config(None, words, verb="overoptimize", preset="tiny"))
    assert (a.cfg.ppo.kl_coef, a.cfg.ppo.gamma, a.cfg.reward.layer, a.cfg.overoptimize.label_noise) == (0.3, 1.0, None, 0.0)
    assert (b.cfg.ppo.kl_coef, b.cfg.ppo.gamma, b.cfg.reward.layer, b.cfg.overoptimize.label_noise) == (0.3, 0.5, 2, 0.25)
    assert b.cfg.sft == a.cfg.sft and b.words == ("reward.layer=2", "overoptimize.label_noise=0.25", "ppo.gamma=0.5")


def test_noise_turns_a_share_of_the_labels_round_and_fewer_labels_are_a_part_of_more() -> None:
    votes = [{"prompt": "p", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(40)]
    cfg = load_config(None, [], verb="overoptimize", preset="tiny").overoptimize

    def drawn(**changed: Any) -> list[dict[str, Any]]:
        return noisy(votes, cfg.model_copy(update=changed), 0, "here")

    assert drawn() == votes
    assert sum(row["chosen"].startswith("bad") for row in drawn(label_noise=0.25)) == 10
    few, more = ({row["chosen"][5:] for row in drawn(num_labels=n)} for n in (8, 16))
    assert few < more and len(more) == 16
    assert drawn(label_noise=0.25) == drawn(label_noise=0.25)
