"""`python -m model`, in the folder `tests`: run many schedules, or repeat one by its seed and show what happened."""

import argparse
import logging
import sys
import time

from model.schedule import Runner


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m model", description=__doc__)
    parser.add_argument("--schedules", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1, help="the seed of the first schedule")
    options = parser.parse_args()
    logging.disable()
    began = time.monotonic()
    with Runner() as runner:
        for seed in range(options.seed, options.seed + options.schedules):
            broken = runner.run(seed)
            if broken is not None:
                print(*broken.notes, sep="\n")
                print(f"repeat it: python -m model --schedules 1 --seed {seed}")
                return 1
    seconds = time.monotonic() - began
    print(f"schedules={options.schedules} violations=0 seconds={seconds:.0f}")
    print(*(f"{what}={count}" for what, count in sorted(runner.counts.items())), sep=", ")
    return 0


sys.exit(main())
