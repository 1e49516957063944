"""`surefoot` and `python -m surefoot`."""

from __future__ import annotations

import sys


def main() -> int:
    """The exit status: 0 done, 1 a bug, 2 bad configuration or data, 3 an alarm, 75 interrupted and resumable."""
    from surefoot.cli import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
