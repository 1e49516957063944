"""The one fault injector: `SUREFOOT_FAULT=site:step:kind` makes a process fail at a named place. Unset, it does nothing.

Several faults are separated by commas; `*` stands for any step. Kinds that happen here: `kill` (SIGKILL), `term` and
`int` (the signal is sent to this process, which goes on), `raise`. Every other kind (`nan`, ...) is handed back to the caller,
who applies it.
Sites: rollout, backward, optimizer (stages); checkpoint-files, checkpoint-rename, checkpoint-after, final-rename (run folders),
vote-arrived, vote-stored (the annotation server, by the number of the ballot).
"""

from __future__ import annotations

import os
import signal

VARIABLE = "SUREFOOT_FAULT"
_SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}


class InjectedFault(Exception):
    """Raised by the kind `raise`. No SurefootError: it stands for a bug, so nothing may swallow it as a user's error."""


def fault_point(site: str, step: int) -> str | None:
    """Fails here if the environment asks for it. Returns the kind when the caller must apply it, else None.

    Raises:
        InjectedFault: the kind is `raise`.
        ValueError: the variable is not `site:step:kind`; a fault that never fires would make a trial pass for nothing.
    """
    spec = os.environ.get(VARIABLE)
    if not spec:
        return None
    for part in spec.split(","):
        fields = part.strip().split(":")
        if len(fields) != 3 or not all(fields) or not (fields[1] == "*" or fields[1].isdecimal()):
            raise ValueError(f"{VARIABLE} = {spec!r}: {part!r} is not site:step:kind, such as checkpoint-rename:4:kill.")
        wanted_site, wanted_step, kind = fields
        if wanted_site == site and wanted_step in ("*", str(step)):
            return _happen(kind, site, step)
    return None


def _happen(kind: str, site: str, step: int) -> str | None:
    if kind in _SIGNALS:
        os.kill(os.getpid(), _SIGNALS[kind])
        return None
    if kind == "raise":
        raise InjectedFault(f"injected at {site}, step {step}")
    return kind
