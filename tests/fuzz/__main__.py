"""``python -m tests.fuzz --minutes 60 [TARGET ...]``: feeds the targets in turn, and counts the inputs.

An input that breaks something is printed, made as small as possible; the others go on.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import traceback

from tests.fuzz.runner import run
from tests.fuzz.targets import TARGETS


def main() -> None:
    names = [target.name for target in TARGETS]
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="for all targets together")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"one of {', '.join(names)}; none: all")
    args = parser.parse_args()
    if unknown := set(args.targets) - set(names):
        parser.error(f"there is no target {', '.join(sorted(unknown))}")
    chosen = [target for target in TARGETS if not args.targets or target.name in args.targets]
    _say(f"seed {args.seed}")
    broken = []
    for target in chosen:
        try:
            fed = run(target, seconds=60 * args.minutes / len(chosen), first_seed=args.seed)
            _say(f"{target.name}: {fed} inputs")
        except Exception:  # noqa: BLE001 - shown, and the other targets are fed all the same
            broken.append(target.name)
            traceback.print_exc()
            _say(f"{target.name}: BROKEN")
    sys.exit(f"broken: {', '.join(broken)}" if broken else 0)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


main()
