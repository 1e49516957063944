"""`surefoot label` under load: 20 annotators at once, 10,000 votes, 200 kill -9 of the server: `python benchmarks/label_load.py`.

Annotators are processes that do over HTTP what the page's script does: they keep a vote and send it again until it is
acknowledged. Afterwards the store is compared with what they were told. Each thinks for a moment between votes, as people do,
but thirty times faster. The time of an answer is that of a vote's post until its acknowledgement, where the first try got one.

`--soak 50000` instead sends that many requests of every kind to one server that nobody kills, and watches its memory, open files
and threads, which must stay where they are.
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
from label_parts.soak import soak

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--annotators", type=int, default=20)
    parser.add_argument("--votes", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--think", type=float, default=0.25, help="seconds a vote, on average")
    parser.add_argument(
        "--soak", type=int, metavar="REQUESTS", help="in place of votes and kills; 50000 is what docs/label.md has"
    )
    parser.add_argument("--out", type=Path, help="default: label-load.json or label-soak.json in benchmarks/results")
    words = parser.parse_args()
    load = Load(words.annotators, words.votes, words.kills, words.think)
    before = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        figures = run(load, Path(folder)) if words.soak is None else soak(Path(folder), words.soak)
    result: dict[str, Any] = {
        "run": {
            "command": "python benchmarks/label_load.py" + (f" --soak {words.soak}" if words.soak else ""),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "python": platform.python_version(),
            "versions": {name: version(name) for name in ("surefoot", "fastapi", "starlette", "uvicorn")},
            "nice": os.nice(0),
            "load_before": before,
            "load_after": os.getloadavg(),
        },
        **({"load": asdict(load)} if words.soak is None else {}),
        "figures": figures,
    }
    out = words.out or RESULTS / ("label-load.json" if words.soak is None else "label-soak.json")
    out.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print(json.dumps({name: figure for name, figure in figures.items() if name != "samples"}, indent=2))
    good = figures["lost"] == figures["doubled"] == 0 and figures["integrity_check"] == "ok"
    fine = figures["refused"] == 0 if words.soak is None else figures["is_flat"] and not figures["unexpected"]
    return 0 if good and fine else 1


if __name__ == "__main__":
    sys.exit(main())
