"""How a verb is started: one process here. Threads are settled before torch is first imported, since OpenMP reads it then, and
memory before anything large is made.

Several processes are torchrun's business: `torchrun --nproc-per-node N -m surefoot ppo run.yaml` starts N of these, with
TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 set, without which a restart in place hangs on gloo. The stages run in one process, so
such a start is refused instead of training N times the same.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from surefoot.errors import ConfigError

if TYPE_CHECKING:
    from surefoot.config import Config

QUOTA_FILE = Path("/sys/fs/cgroup/cpu.max")
CPU_FILE = Path("/proc/cpuinfo")
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # of x86's "flags" and of Arm's "Features"
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's <malloc.h>


def single(cfg: Config, body: Callable[[], None]) -> None:
    """Runs `body` in this process with the configured number of threads.

    Raises: ConfigError when torchrun started several processes.
    """
    world_size = os.environ.get("WORLD_SIZE", "1")
    if world_size != "1":
        raise ConfigError(
            f"WORLD_SIZE = {world_size} in the environment, but verbs run in one process. Start it without torchrun."
        )
    set_threads(cfg.threads)
    keep_freed_memory()
    body()


def set_threads(threads: int | None) -> int:
    """Settles the number of CPU threads: `threads`, else OMP_NUM_THREADS, else the cores this process may use. Returns it."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    number = threads or (int(asked) if asked.isdigit() and int(asked) > 0 else usable_cores())
    os.environ["OMP_NUM_THREADS"] = str(number)
    if "torch" in sys.modules:  # a notebook imported it before us
        sys.modules["torch"].set_num_threads(number)
    return number


def keep_freed_memory() -> bool:
    """Memory that tensors leave stays with this process for the next ones, where torch takes it from glibc; whether glibc agreed.

    glibc takes large blocks from the system one by one and hands them back when they are freed, so every step's activations and
    gradients are new pages again, which the kernel zeroes one by one: up to a third of an update's CPU time. In turn the process
    stays as large as it ever was. Settings of the user's (MALLOC_*, GLIBC_TUNABLES; mallopt(3)) win.
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))


def usable_cores() -> int:
    """Cores that this process may use: its affinity, cut by the quota of its container; at least 1."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    try:
        quota, period = QUOTA_FILE.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def multiplies_bfloat16(device: str) -> bool:
    """Whether `device` has instructions for bfloat16; without them a CPU is slower in it than in float32.

    GPUs are taken to have them, as all since 2020 do; of a CPU Linux alone tells.
    """
    if device != "cpu":
        return True
    return not BF16_FLAGS.isdisjoint(_of_the_cpu())


def is_amd() -> bool:
    """Whether the CPU is AMD's; of one under Linux alone it is known."""
    return "AuthenticAMD" in _of_the_cpu()


def _of_the_cpu() -> set[str]:
    """The words with which Linux describes the CPU; none on another system."""
    try:
        return set(CPU_FILE.read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        return set()
