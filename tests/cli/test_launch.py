"""Threads and memory are settled before anything computes, and a start in several processes is refused."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from surefoot import launch
from surefoot.config import Config, ModelConfig
from surefoot.errors import ConfigError


@pytest.fixture(autouse=True)
def one_thread_after(monkeypatch):
    """torch's number of threads is the process's: the tests that follow find it as it was."""
    import torch

    before = torch.get_num_threads()
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    yield
    torch.set_num_threads(before)


def test_threads_come_from_the_setting_then_the_environment_then_the_cores(monkeypatch):
    import torch

    monkeypatch.setattr(launch, "usable_cores", lambda: 7)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert launch.set_threads(2) == torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"]) == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert launch.set_threads(None) == torch.get_num_threads() == 3
    for unusable in ("", "0", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", unusable)
        assert launch.set_threads(None) == torch.get_num_threads() == 7


@pytest.mark.parametrize(
    "quota, cores", [("max 100000", 8), ("200000 100000", 2), ("250000 100000", 2), ("50000 100000", 1), ("nonsense", 8)]
)
def test_cores_are_those_of_the_affinity_cut_by_the_containers_quota(quota, cores, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "QUOTA_FILE", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert launch.usable_cores() == 8
    (tmp_path / "cpu.max").write_text(quota, encoding="ascii")
    assert launch.usable_cores() == cores


def test_the_body_runs_once_with_the_threads_of_the_configuration(monkeypatch):
    import torch

    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    seen: list[int] = []
    monkeypatch.setattr(launch, "keep_freed_memory", lambda: seen.append(-1))
    launch.single(Config(threads=2), lambda: seen.append(torch.get_num_threads()))
    assert seen == [-1, 2]


def test_a_start_in_several_processes_is_refused_before_anything_runs(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    seen: list[int] = []
    with pytest.raises(
        ConfigError, match=r"^WORLD_SIZE = 2 in the environment, but verbs run in one process\. Start it without torchrun\.$"
    ):
        launch.single(Config(), lambda: seen.append(1))
    assert seen == []


FAULTS = """
import resource, sys, torch
from surefoot import launch
kept = launch.keep_freed_memory() if sys.argv[1] == "keep" else None
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):  # as updates do: large blocks, then none
        blocks = [torch.ones(1 << 24) for _ in range(2)]  # 64 MiB each
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(kept, faults())
"""


IS_GLIBC = sys.platform == "linux" and platform.machine() == "x86_64"  # on Arm torch brings an allocator of its own


@pytest.mark.skipif(not IS_GLIBC, reason="torch takes memory from elsewhere")
def test_memory_that_tensors_leave_is_not_asked_for_again():
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}

    def faults(word: str) -> list[str]:
        command = [sys.executable, "-c", FAULTS, word]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=120).stdout.split()

    (kept, few), (_, many) = faults("keep"), faults("as it is")
    assert kept == "True"
    assert int(few) < 0.01 * int(many)


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_the_users_own_settings_of_malloc_win(name, monkeypatch):
    monkeypatch.setattr(launch.ctypes, "CDLL", lambda _: pytest.fail("malloc was set"))
    monkeypatch.setenv(name, "1")
    assert launch.keep_freed_memory() is False


@pytest.mark.parametrize(
    "flags, native", [("fma avx2 avx512_bf16 avx512vl", True), ("amx_bf16", True), ("asimd bf16", True), ("avx2 xbf16", False)]
)
def test_auto_is_bfloat16_where_the_cpu_multiplies_it(flags, native, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "CPU_FILE", tmp_path / "cpuinfo")
    assert ModelConfig(dtype="auto").dtype == "float32"  # nothing is known of the CPU
    assert ModelConfig(dtype="auto", device="cuda").dtype == "bfloat16"
    (tmp_path / "cpuinfo").write_text(f"model name\t: some CPU\nflags\t\t: {flags}\n", encoding="utf-8")
    assert ModelConfig(dtype="auto").dtype == ("bfloat16" if native else "float32")
    assert ModelConfig().dtype == "float32"


@pytest.mark.parametrize("vendor, amd", [("AuthenticAMD", True), ("GenuineIntel", False)])
def test_whose_cpu_it_is(vendor, amd, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "CPU_FILE", tmp_path / "cpuinfo")
    assert launch.is_amd() is False  # nothing is known of the CPU
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: some CPU\n", encoding="utf-8")
    assert launch.is_amd() is amd
