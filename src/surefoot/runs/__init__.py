"""Run folders: settings, metrics, samples, checkpoints, resume. A process may be killed at any moment; what was saved stays.

with RunFolder.open(path, verb="sft", cfg=cfg) as folder:
    state = folder.restore()                 # None: a fresh start
    for step in ...:
        folder.record(step, metrics)
        folder.save(step, state)
        folder.check_stop()
    with folder.final() as where:
        model.save_pretrained(where)
    folder.finish()
"""

from surefoot.runs.checkpoint import State, all_finite, not_finite_in, saved_state
from surefoot.runs.durable import hash_file, hash_folder, validate_name, write_atomic
from surefoot.runs.folder import RunFolder
from surefoot.runs.jsonl import read_jsonl
from surefoot.runs.manifest import has_progress, load_manifest
from surefoot.runs.optimizer_state import flatten_optimizer, restore_optimizer

__all__ = [
    "RunFolder",
    "State",
    "all_finite",
    "flatten_optimizer",
    "has_progress",
    "hash_file",
    "hash_folder",
    "load_manifest",
    "not_finite_in",
    "read_jsonl",
    "restore_optimizer",
    "saved_state",
    "validate_name",
    "write_atomic",
]
