"""What the verbs do with words, folders and errors. Stages are stand-ins here; real ones run in tests/pipeline."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import surefoot.build  # noqa: F401 - before a stub stands where it imports from
from surefoot.cli import run
from surefoot.cli_run import STAGES
from surefoot.cli_words import split_words
from surefoot.config import Config
from surefoot.errors import ConfigError, DataError, EngineError, Interrupted, RunError, SurefootError, TrainingError
from surefoot.runs import RunFolder

SOURCES = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}


class Stage(ModuleType):
    """Stands in for a stage's module: remembers what it was given and does `act`."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[Config, Path]] = []
        self.act: Callable[[RunFolder], None] = lambda folder: folder.finish()

    def run(self, cfg: Config, folder: RunFolder, progress: object, **given: object) -> None:
        self.calls.append((cfg, folder.path))
        self.act(folder)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Stage]:
    """Replaces the stage of a verb; the working directory is an empty one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def replace(verb: str) -> Stage:
        module = Stage(STAGES[verb])
        monkeypatch.setitem(sys.modules, STAGES[verb], module)
        return module

    return replace


@pytest.mark.parametrize("verb", sorted(STAGES))
def test_a_verb_hands_settings_and_folder_to_its_stage(stage, verb, capsys):
    module = stage(verb)
    own = {"control": ["--control.num_steps", "32"], "compare": ["tiny", "tiny"]}
    assert run([verb, *own.get(verb, ["--model.name", "tiny"]), "--seed", "3"]) == 0
    ((cfg, folder),) = module.calls
    assert cfg.seed == 3
    assert cfg.control.num_steps == 32 if verb == "control" else cfg.model.name == "tiny"
    assert folder == Path("runs", verb).absolute()
    assert re.search(rf"run folder runs/{verb}; threads: \d+ of \d+ cores\n", capsys.readouterr().err)


def test_a_run_ends_with_its_report_which_is_made_anew_and_once_more_where_it_is_missing(stage, capsys):
    module, report = stage("sft"), Path("runs/sft/report.html")

    def interrupted(folder: RunFolder) -> None:
        (folder.path / "report.html").write_text("of the first half")
        raise Interrupted("half")

    module.act = interrupted
    assert run(["sft", "--model.name", "tiny"]) == 75
    module.act = lambda folder: folder.finish()
    assert run(["sft", "--model.name", "tiny"]) == 0
    assert "<html" in report.read_text()
    report.unlink()  # a kill between the run's end and its report
    assert run(["sft", "--model.name", "tiny"]) == 0
    assert "<html" in report.read_text() and len(module.calls) == 2
    assert "nothing is left to do" in capsys.readouterr().err


def test_file_settings_and_options_may_stand_in_any_order(stage):
    module = stage("ppo")
    Path("my run.yaml").write_text("seed: 4\nppo: {gamma: 0.9}\n", encoding="utf-8")
    orders = [
        ["my run.yaml", "--out", "a", "--ppo.length_penalty", "-0.5"],
        ["--ppo.length_penalty", "-0.5", "--out", "b", "my run.yaml"],
        ["--out=c", "--ppo.length_penalty=-0.5", "my run.yaml", "--resume", "auto"],
    ]
    for words in orders:
        assert run(["ppo", *words]) == 0
    assert [(cfg.seed, cfg.ppo.gamma, cfg.ppo.length_penalty, folder.name) for cfg, folder in module.calls] == [
        (4, 0.9, -0.5, name) for name in "abc"
    ]


def test_the_demo_takes_its_preset_and_what_is_said_on_top(stage):
    module = stage("demo")
    assert run(["demo", "--preset", "tiny", "--ppo.objective", "penalty", "--out", "x"]) == 0
    ((cfg, _),) = module.calls
    assert (cfg.model.name, cfg.ppo.objective) == ("tiny", "penalty")


def test_a_run_that_is_done_is_not_run_again(stage, capsys):
    module = stage("sft")
    assert run(["sft"]) == run(["sft"]) == 0
    assert len(module.calls) == 1
    assert "is done; nothing is left to do" in capsys.readouterr().err


def test_a_folder_in_use_is_refused_when_resume_is_never(stage, capsys):
    module = stage("sft")
    module.act = lambda folder: folder.record(1, {"loss": 1.0})
    assert run(["sft", "--out", "x"]) == 0
    assert run(["sft", "--out", "x", "--resume", "never"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("RunError: ")
    assert len(module.calls) == 1


@pytest.mark.parametrize(
    "words, line",
    [
        (["ppo", "--ppo.clip_eps", "1"], "ConfigError: command line: no setting ppo.clip_eps. Did you mean ppo.cliprange?"),
        (["ppo", "none.yaml"], "ConfigError: no file none.yaml. Check the name; settings start with two dashes."),
        (
            ["ppo", "a.yaml", "b.yaml"],
            "ConfigError: command line: two files, a.yaml and b.yaml. Name one; write settings as --SECTION.SETTING VALUE.",
        ),
        (["ppo", "--dryrun"], "ConfigError: command line: no setting dryrun. Did you mean --dry-run?"),
        (["demo", "--prest=tiny"], "ConfigError: command line: no setting prest. Did you mean --preset?"),
        (
            ["ppo", "--ppo.num_mini_batches=3"],
            "ConfigError: command line: ppo.num_mini_batches = 3 does not divide the 64 rows of a rollout. "
            "Use one of 1, 2, 4, 8, 16, 32, 64.",
        ),
        (["report", "none"], "DataError: no run folder none. Name the folder that a verb wrote, for example runs/demo."),
        (
            ["chat", "x", "--model.name=y"],
            "ConfigError: command line: --model.name is given, but chat takes the model as its first word.",
        ),
        (["report"], "UsageError: Missing argument 'RUN'. See surefoot --help."),
        (
            ["label", "--port", "99999"],
            "UsageError: Invalid value for '--port': Input should be less than or equal to 65535. See surefoot --help.",
        ),
        (["ppo", "--out"], "UsageError: Option '--out' requires an argument. See surefoot --help."),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_status_2_and_nothing_is_written(stage, words, line, capsys, tmp_path):
    for verb in STAGES:
        stage(verb)
    assert run(words) == 2
    captured = capsys.readouterr()
    assert captured.err == f"{line}\n"
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_verb_is_refused_with_a_guess(capsys):
    assert run(["pppo"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("UsageError: No such command 'pppo'.") and "ppo" in line.removeprefix(
        "UsageError: No such command 'pppo'."
    )


def test_several_problems_are_a_line_each(stage, capsys):
    stage("ppo")
    assert run(["ppo", "--ppo.gamma=2", "--ppo.lam=3"]) == 2
    assert [line.split(" = ")[0] for line in capsys.readouterr().err.splitlines()] == [
        "ConfigError: command line: ppo.gamma",
        "ConfigError: command line: ppo.lam",
    ]


@pytest.mark.parametrize(
    "error, status",
    [
        (ConfigError, 2),
        (DataError, 2),
        (EngineError, 2),
        (RunError, 2),
        (SurefootError, 2),
        (TrainingError, 3),
        (Interrupted, 75),
    ],
)
def test_a_stages_error_decides_the_exit_status(stage, error, status, capsys):
    def fail(folder: RunFolder) -> None:
        raise error("it went wrong. Do better.")

    stage("ppo").act = fail
    assert run(["ppo"]) == status
    assert capsys.readouterr().err.splitlines()[-1] == f"{error.__name__}: it went wrong. Do better."


def test_the_keyboard_interrupts_with_status_75(stage, capsys):
    def fail(folder: RunFolder) -> None:
        raise KeyboardInterrupt

    stage("ppo").act = fail
    assert run(["ppo"]) == 75
    assert capsys.readouterr().err.splitlines()[-1].startswith("Interrupted: ")


@pytest.mark.parametrize("error", [ZeroDivisionError, EOFError, BrokenPipeError])  # the last two: a worker process that died
def test_a_bug_leaves_as_it_is(stage, error):
    def fail(folder: RunFolder) -> None:
        raise error(errno.EPIPE, "a bug")

    stage("ppo").act = fail
    with pytest.raises(error, match="a bug"):
        run(["ppo"])


def test_a_reader_that_leaves_ends_the_command_without_a_word():
    command = [sys.executable, "-m", "surefoot", "--help"]
    with subprocess.Popen(command, env=SOURCES, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        child.stdout.close()  # what `| head -0` does
        said = child.stderr.read().decode()
    assert (child.returncode, said) == (1, "")


def test_a_bug_ends_the_process_with_a_traceback_and_status_1():
    code = "import sys; sys.argv[1:] = ['doctor']; import surefoot.doctor as d; d.examine = lambda say, up_to: 1 / 0\n"
    code += "import surefoot.__main__ as m; sys.exit(m.main())"
    done = subprocess.run([sys.executable, "-c", code], env=SOURCES, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback (most recent call last)")
    assert done.stderr.rstrip().endswith("ZeroDivisionError: division by zero")


def test_without_words_the_answer_is_the_help(capsys):
    assert run([]) == 0
    said = capsys.readouterr()
    assert run(["--help"]) == 0
    assert capsys.readouterr() == said
    assert "evaluate" in said.out


@pytest.mark.parametrize(
    "words, path, overrides",
    [
        ([], None, []),
        (["a.yaml"], Path("a.yaml"), []),
        (["--a.b", "1", "a.yaml"], Path("a.yaml"), ["--a.b", "1"]),
        (["a.yaml", "--a.b=1", "--c", "-2"], Path("a.yaml"), ["--a.b=1", "--c", "-2"]),
        (["--a.b", "--c", "1"], None, ["--a.b", "--c", "1"]),
    ],
)
def test_words_are_split_into_the_file_and_the_settings(words, path, overrides):
    assert split_words(words) == (path, overrides)


def test_report_prints_where_the_report_is(tmp_path, monkeypatch, capsys):
    module = ModuleType("surefoot.diagnostics.report")
    module.write_report = lambda run, notes: run / "report.html"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert run(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"


def test_chat_hands_over_the_model_and_the_settings(monkeypatch):
    module = ModuleType("surefoot.stages.chat")
    calls = []
    module.run = lambda model, cfg: calls.append((model, cfg.rollout.temperature))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert run(["chat", "runs/ppo", "--rollout.temperature", "0.5"]) == 0
    assert calls == [("runs/ppo", 0.5)]


def test_the_version_is_printed(capsys):
    import surefoot

    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"surefoot {surefoot.__version__}\n"


def test_preferences_go_into_a_store_and_come_out_again(tmp_path, capsys):
    lines = '{"prompt": "p", "chosen": "good", "rejected": "bad"}\n{"prompt": "q", "chosen": "yes", "rejected": "no"}\n'
    (tmp_path / "in.jsonl").write_text(lines, encoding="utf-8")
    store, out = tmp_path / "store.db", tmp_path / "out.jsonl"
    assert run(["import", str(tmp_path / "in.jsonl"), "--store", str(store), "--source", "human:ada"]) == 0
    assert re.search(r"\b2 \w* ?votes of human:ada\b", capsys.readouterr().out)
    assert run(["export", "--store", str(store), "--out", str(out)]) == 0
    assert out.read_text(encoding="utf-8") == lines


def test_a_failed_import_or_export_leaves_no_file_behind(tmp_path, capsys):
    store, out = tmp_path / "store.db", tmp_path / "out.jsonl"
    assert run(["import", str(tmp_path / "none.jsonl"), "--store", str(store)]) == 2
    assert run(["export", "--store", str(store), "--out", str(out)]) == 2
    assert [line.partition(": ")[0] for line in capsys.readouterr().err.splitlines()] == ["DataError", "DataError"]
    assert list(tmp_path.iterdir()) == []
