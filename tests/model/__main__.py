"""`python -m model`, in the folder `tests`: many schedules, or one by its seed, and what happened in it."""

import argparse
import sys
import time

from model.schedule import run_all


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m model", description=__doc__)
    parser.add_argument("--schedules", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1, help="the seed of the first schedule")
    options = parser.parse_args()
    began = time.monotonic()
    counts, broken = run_all(options.seed, options.schedules)
    if broken is not None:
        print(*broken, sep="\n")
        return 1
    print(f"schedules={options.schedules} violations=0 seconds={time.monotonic() - began:.0f}")
    print(*(f"{what}: {count}" for what, count in sorted(counts.items())), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
