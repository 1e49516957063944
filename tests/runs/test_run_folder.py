"""What a run folder records, and what it refuses to record."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from surefoot.config import Config
from surefoot.errors import RunError
from surefoot.runs import RunFolder, State, hash_folder, load_manifest, read_jsonl
from surefoot.runs.checkpoint import render_values
from surefoot.runs.jsonl import as_line

STATE = State({}, {})


def open_run(path: Path, **options: Any) -> RunFolder:
    return RunFolder.open(path, **{"verb": "sft", "cfg": Config(), **options})


def test_a_line_is_one_object_with_step_first_and_the_keys_in_their_order(tmp_path: Path) -> None:
    with open_run(tmp_path) as folder:
        folder.record(3, {"policy/clipfrac_avg": 0.1, "episode": 64, "skip": "", "done": True})
        folder.record(4, {"loss": 0.1 + 0.2})
        # a reader sees them now, not at the end of the run
        assert (tmp_path / "metrics.jsonl").read_text() == (
            '{"step": 3, "policy/clipfrac_avg": 0.1, "episode": 64, "skip": "", "done": true}\n'
            '{"step": 4, "loss": 0.30000000000000004}\n'
        )


def test_a_metric_that_is_not_finite_is_null(tmp_path: Path) -> None:
    with open_run(tmp_path) as folder:
        folder.record(1, {"a": math.nan, "b": math.inf, "c": -math.inf})
        folder.samples(1, [{"scores": [1.0, math.nan], "parts": {"x": math.inf}}])
    assert read_jsonl(tmp_path / "metrics.jsonl") == [{"step": 1, "a": None, "b": None, "c": None}]
    assert read_jsonl(tmp_path / "samples.jsonl") == [{"step": 1, "scores": [1.0, None], "parts": {"x": None}}]


def test_a_tensor_is_no_metric(tmp_path: Path) -> None:
    with open_run(tmp_path) as folder:
        with pytest.raises(TypeError, match="metric loss is Tensor; give a number, text or a boolean"):
            folder.record(1, {"loss": torch.tensor(1.0)})  # type: ignore[dict-item]
        with pytest.raises(ValueError, match="may not have a field named step"):
            folder.record(1, {"step": 2})
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


@given(text=st.text(st.characters(exclude_categories=())))
def test_any_text_is_one_line_and_comes_back(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    # half surrogates, NUL, and the separators U+2028 and U+0085 that splitlines() takes for line ends
    path = tmp_path_factory.getbasetemp() / "samples.jsonl"
    path.write_bytes(as_line({"text": text}) + as_line({"text": "next"}))
    assert path.read_bytes().count(b"\n") == 2
    assert read_jsonl(path) == [{"text": text}, {"text": "next"}]


def test_no_wall_time_stands_in_metrics_or_manifest_and_events_have_one(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with open_run(tmp_path / name) as folder:
            folder.record(1, {"loss": 1.0})
            folder.timing(1, {"rollout": 0.25 if name == "one" else 0.5})
            folder.note("something")
            folder.finish(accuracy=0.5)
    for file in ("metrics.jsonl", "manifest.json", "config.yaml"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert read_jsonl(tmp_path / "two" / "timings.jsonl") == [{"step": 1, "rollout": 0.5}]
    (event,) = read_jsonl(tmp_path / "one" / "events.jsonl")
    assert event["message"] == "something" and event["pid"] == os.getpid() and event["time"].endswith("+00:00")


def test_the_manifest_says_what_the_run_was_made_with(tmp_path: Path) -> None:
    with open_run(tmp_path, cfg=Config(seed=7), extra={"model": "abc"}) as folder:
        manifest = load_manifest(tmp_path)
        assert (manifest["verb"], manifest["status"], manifest["seed"], manifest["inputs"]) == (
            "sft",
            "started",
            7,
            {"model": "abc"},
        )
        assert manifest["versions"]["torch"] == torch.__version__
        assert manifest["versions"]["python"] == platform.python_version()
        assert manifest["versions"]["threads"] == torch.get_num_threads()
        assert {"surefoot", "transformers", "peft", "safetensors", "numpy"} <= manifest["versions"].keys()
        assert not folder.is_done
        with folder.final() as final:
            (final / "model").write_text("weights")
        folder.finish(accuracy=0.75)
        assert folder.is_done
    manifest = load_manifest(tmp_path)
    assert (manifest["status"], manifest["facts"]) == ("done", {"accuracy": 0.75})
    assert manifest["outputs"] == {"final": {"sha256": hash_folder(tmp_path / "final")}}
    with open_run(tmp_path, cfg=Config(seed=7)) as again:
        assert again.is_done
    assert load_manifest(tmp_path) == manifest


def test_the_commit_of_the_working_directory_is_in_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GIT_")]:  # a hook's GIT_DIR would point elsewhere
        monkeypatch.delenv(name)
    code = tmp_path / "code"
    code.mkdir()
    monkeypatch.chdir(code)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))

    def git(*words: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
        return subprocess.run(["git", *identity, *words], check=True, capture_output=True, text=True).stdout.strip()

    open_run(tmp_path / "a").close()
    assert load_manifest(tmp_path / "a")["git"] is None
    git("init")
    (code / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "one")
    open_run(tmp_path / "b").close()
    assert load_manifest(tmp_path / "b")["git"] == {"commit": git("rev-parse", "HEAD"), "changed": False}
    (code / "file").write_text("2")
    open_run(tmp_path / "c").close()
    assert load_manifest(tmp_path / "c")["git"]["changed"] is True


def test_facts_that_are_no_json_are_refused_and_the_manifest_stays(tmp_path: Path) -> None:
    with open_run(tmp_path) as folder:
        before = (tmp_path / "manifest.json").read_bytes()
        with pytest.raises(RunError, match=r"manifest\.json cannot hold status, reason, facts"):
            folder.finish(accuracy=math.nan)
        assert (tmp_path / "manifest.json").read_bytes() == before
        assert not folder.is_done


def test_recording_before_restoring_is_an_error_and_not_a_second_copy_of_the_run(tmp_path: Path) -> None:
    with open_run(tmp_path) as folder:
        folder.record(1, {"loss": 1.0})
        folder.save(1, STATE)
    with open_run(tmp_path) as folder:
        for forbidden in (lambda: folder.record(1, {}), lambda: folder.samples(1, [{}]), lambda: folder.save(1, STATE)):
            with pytest.raises(RuntimeError, match=r"restore\(\) comes first"):
                forbidden()
    assert read_jsonl(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 1.0}]


def test_without_a_checkpoint_a_run_starts_afresh_with_empty_logs(tmp_path: Path) -> None:
    with open_run(tmp_path) as folder:
        assert folder.restore() is None
        folder.record(1, {"loss": 1.0})
        folder.samples(1, [{"text": "a"}])
        folder.timing(1, {"rollout": 1.0})
        folder.note("kept")
    with open_run(tmp_path) as folder:
        assert folder.restore() is None
    for name in ("metrics.jsonl", "samples.jsonl", "timings.jsonl"):
        assert (tmp_path / name).read_bytes() == b""
    assert [row["message"] for row in read_jsonl(tmp_path / "events.jsonl")] == ["kept"]


@pytest.mark.parametrize(("keep", "left"), [(1, [5]), (2, [4, 5]), (4, [2, 3, 4, 5]), (9, [1, 2, 3, 4, 5])])
def test_the_newest_checkpoints_are_kept(keep: int, left: list[int], tmp_path: Path) -> None:
    with open_run(tmp_path, keep=keep) as folder:
        for step in range(1, 6):
            assert folder.save(step, State({}, {"step": step})) == tmp_path / f"checkpoint-{step}"
    assert sorted(int(path.name.removeprefix("checkpoint-")) for path in tmp_path.glob("checkpoint-*")) == left


def test_keeping_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep = 0: at least one checkpoint is kept"):
        open_run(tmp_path, keep=0)


def test_checkpoint_10_is_newer_than_checkpoint_9(tmp_path: Path) -> None:
    with open_run(tmp_path) as folder:
        for step in (9, 10):
            folder.save(step, State({}, {"step": step}))
    with open_run(tmp_path) as folder:
        state = folder.restore()
        assert state is not None and state.values == {"step": 10}


def test_a_step_that_is_saved_again_holds_the_second_state(tmp_path: Path) -> None:
    with open_run(tmp_path) as folder:
        for value in (1, 2):
            folder.save(5, State({"a": {"x": torch.tensor([value])}}, {"value": value}))
    with open_run(tmp_path) as folder:
        state = folder.restore()
        assert state is not None
        assert (state.values["value"], state.tensors["a"]["x"].item()) == (2, 2)
    assert sorted(path.name for path in tmp_path.iterdir() if "checkpoint" in path.name) == ["checkpoint-5"]


def test_tied_sliced_and_turned_tensors_come_back_with_every_bit(tmp_path: Path) -> None:
    weight = torch.randn(4, 6)
    tensors = {
        "tied": weight,
        "tied again": weight,
        "row": weight[1],
        "turned": weight.t(),
        "strided": weight[:, ::2],
        "expanded": torch.tensor(1.5).expand(3),
        "scalar": torch.tensor(2.0),
        "empty": torch.empty(0, 3),
        "bf16": weight.bfloat16(),
        "half": weight.half(),
        "f64": weight.double(),
        "int64": torch.tensor([-(2**63), 2**63 - 1]),
        "bool": torch.tensor([True, False]),
        "bytes": torch.get_rng_state(),
        "odd": torch.tensor([math.nan, -0.0, math.inf, 1e-45]),  # state may hold what a coefficient may not
        "learned": torch.nn.Parameter(weight),
    }
    with open_run(tmp_path) as folder:
        folder.save(1, State({"all": tensors, "none": {}}, {}))
    with open_run(tmp_path) as folder:
        state = folder.restore()
    assert state is not None and state.tensors["none"] == {}
    back = state.tensors["all"]
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (back[name].dtype, back[name].shape) == (tensor.dtype, tensor.shape)
        if tensor.numel():
            same = back[name].contiguous().view(torch.uint8) if tensor.dim() else back[name].reshape(1).view(torch.uint8)
            wanted = tensor.detach().contiguous().view(torch.uint8) if tensor.dim() else tensor.reshape(1).view(torch.uint8)
            assert torch.equal(same, wanted), name
        back[name].zero_()  # an ordinary tensor, free to be changed


@given(number=st.floats(allow_nan=False, allow_infinity=False))
def test_floats_come_back_bit_for_bit(number: float) -> None:
    back = json.loads(render_values({"x": number}))["x"]
    assert isinstance(back, float) and back.hex() == number.hex()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"a": {"b": [1.0, math.nan]}}, r"checkpoint values\.a\.b\[1\] = nan is not finite"),
        ({"a": -math.inf}, r"checkpoint values\.a = -inf is not finite"),
        ({"a": {1: 2}}, r"checkpoint values\.a has the key 1; JSON would bring it back as text"),
        ({"a": torch.tensor(1)}, r"checkpoint values\.a is Tensor; JSON holds text"),
        ({"a": {2.0}}, r"checkpoint values\.a is set; JSON holds text"),
    ],
)
def test_values_that_json_cannot_give_back_are_refused_with_their_place(values: Any, sentence: str, tmp_path: Path) -> None:
    with open_run(tmp_path) as folder:
        with pytest.raises(RunError, match=sentence):
            folder.save(1, State({}, values))
        assert list(tmp_path.glob("*checkpoint*")) == []


def test_final_appears_whole_or_not_at_all_and_replaces_the_one_before(tmp_path: Path) -> None:
    with open_run(tmp_path) as folder:
        with pytest.raises(ZeroDivisionError), folder.final() as final:
            (final / "a").write_text("half")
            raise ZeroDivisionError
        assert not (tmp_path / "final").exists()
        with folder.final() as final:
            (final / "deep").mkdir()
            (final / "deep" / "a").write_text("one")
            assert not (tmp_path / "final").exists()
        with pytest.raises(ZeroDivisionError), folder.final() as final:
            raise ZeroDivisionError
        assert (tmp_path / "final" / "deep" / "a").read_text() == "one"
        with folder.final() as final:
            (final / "b").write_text("two")
        assert [path.name for path in (tmp_path / "final").iterdir()] == ["b"]
        with folder.final("merged") as final:
            (final / "c").write_text("three")
    assert sorted(load_manifest(tmp_path)["outputs"]) == ["final", "merged"]
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    "name", ["../x", "..", ".", "", "a/b", "/etc/x", "A", "a\n", ".hidden", "-rf", "a" * 65, "ünder", "a\0", "a\\b"]
)
def test_a_name_cannot_leave_the_folder(name: str, tmp_path: Path) -> None:
    with open_run(tmp_path / "run") as folder:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(RunError, match="is not allowed"):
            folder.write(name, "text")
        with pytest.raises(RunError, match="is not allowed"), folder.final(name):
            pass
        with pytest.raises(RunError, match="is not allowed"):
            folder.save(1, State({name: {}}, {}))
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "manifest.json", "config.yaml", "run.lock", "events.jsonl", "checkpoint-3"])
def test_what_the_folder_writes_itself_cannot_be_written_over(name: str, tmp_path: Path) -> None:
    with open_run(tmp_path) as folder:
        with pytest.raises(RunError, match="writes itself"):
            folder.write(name, "")
        with pytest.raises(RunError, match="writes itself"), folder.final(name):
            pass


def test_write_replaces_a_small_file_whole(tmp_path: Path) -> None:
    with open_run(tmp_path) as folder:
        assert folder.write("verdict.json", "one") == tmp_path / "verdict.json"
        folder.write("verdict.json", "zwölf")
    assert (tmp_path / "verdict.json").read_text("utf-8") == "zwölf"


def test_a_later_chdir_does_not_move_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with open_run(Path("run")) as folder:
        (tmp_path / "other").mkdir()
        monkeypatch.chdir(tmp_path / "other")
        folder.write("verdict.json", "")
        folder.save(1, STATE)
    assert (tmp_path / "run" / "verdict.json").exists() and (tmp_path / "run" / "checkpoint-1").is_dir()
    assert list((tmp_path / "other").iterdir()) == []


def test_read_jsonl_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(RunError, match=r"metrics\.jsonl: No such file or directory"):
        read_jsonl(path)
    path.write_bytes(b'{"a": 1}\n{"a": 2')
    assert read_jsonl(path) == [{"a": 1}]  # the second was being written
    path.write_bytes(b'{"a": 1}\n{"a": 2\n')
    with pytest.raises(RunError, match=r"metrics\.jsonl line 2 is not JSON"):
        read_jsonl(path)
    path.write_bytes(b'{"a": 1}\n[1]\n')
    with pytest.raises(RunError, match=r"metrics\.jsonl line 2 is list, not an object"):
        read_jsonl(path)


def test_load_manifest_of_a_folder_that_is_no_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is no run folder: it has no manifest\.json\. Give the folder that --out named\."):
        load_manifest(tmp_path)
