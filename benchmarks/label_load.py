"""`surefoot label` under load: 20 annotators at once, 10,000 votes, 200 kill -9 of the server: `python benchmarks/label_load.py`.

Annotators are processes that do over HTTP what the page's script does: they keep a vote and send it again until it is
acknowledged. Afterwards the store is compared with what they were told. Each thinks for a moment between votes, as people do,
but thirty times faster. The time of an answer is that of a vote's post until its acknowledgement, where the first try got one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from label_parts.load import Load, run

RESULTS = Path(__file__).parent / "results" / "label-load.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--annotators", type=int, default=20)
    parser.add_argument("--votes", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--think", type=float, default=0.25, help="seconds a vote, on average")
    parser.add_argument("--out", type=Path, default=RESULTS)
    words = parser.parse_args()
    load = Load(words.annotators, words.votes, words.kills, words.think)
    before = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        figures = run(load, Path(folder))
    result: dict[str, Any] = {
        "run": {
            "command": "python benchmarks/label_load.py",
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "python": platform.python_version(),
            "versions": {name: version(name) for name in ("surefoot", "fastapi", "starlette", "uvicorn")},
            "nice": os.nice(0),
            "load_before": before,
            "load_after": os.getloadavg(),
        },
        "load": asdict(load),
        "figures": figures,
    }
    words.out.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print(json.dumps(figures, indent=2))
    good = figures["lost"] == figures["doubled"] == figures["refused"] == 0 and figures["integrity_check"] == "ok"
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
