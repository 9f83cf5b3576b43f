"""``python -m tests.fuzz``: many spoiled files of every kind, and a table of how they ended. ``make fuzz`` runs 20 000."""

from __future__ import annotations

import argparse
import faulthandler
import sys
from collections import Counter

from tests.fuzz.campaign import Tally, campaign


def main() -> int:
    """Run the cases, say each escape as it happens, and print the table; 1 where anything escaped."""
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", help="only kinds whose name holds this")
    options = parser.parse_args()
    faulthandler.enable()
    tally: dict[str, Tally] = {}
    for done, (kind, number, outcome, now) in enumerate(campaign(options.cases, options.seed, only=options.kind), 1):
        tally = now
        faulthandler.dump_traceback_later(900, exit=True)
        if outcome.kind == "escaped":
            print(f"ESCAPED {kind} --seed {options.seed} case {number}: {outcome.detail}", flush=True)
        if done % 500 == 0:
            print(f"{done} of {options.cases}", file=sys.stderr, flush=True)
    faulthandler.cancel_dump_traceback_later()
    total: Counter[str] = Counter()
    print(f"{'kind':<24}{'cases':>8}{'refused':>9}{'accepted':>10}{'escaped':>9}{'longest s':>11}")
    for kind, row in tally.items():
        total.update(row.ends)
        cases = sum(row.ends.values())
        print(
            f"{kind:<24}{cases:>8}{row.ends['refused']:>9}{row.ends['accepted']:>10}{row.ends['escaped']:>9}{row.longest:>11.2f}"
        )
    print(f"{'all':<24}{sum(total.values()):>8}{total['refused']:>9}{total['accepted']:>10}{total['escaped']:>9}")
    return int(total["escaped"] > 0)


if __name__ == "__main__":
    sys.exit(main())
