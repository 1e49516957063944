"""One process or many: each runtime keeps the promises of `types.Runtime`. `FSDPRuntime` is imported from `runtime.fsdp`."""

from .single import SingleRuntime

__all__ = ["SingleRuntime"]
