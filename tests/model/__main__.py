"""`python -m model`, in the folder `tests`: many schedules, or one by its seed, and what happened in it."""

import sys
import time

import click
from model.schedule import run_all


@click.command(help=__doc__)
@click.option("--schedules", default=200_000, show_default=True)
@click.option("--seed", default=1, show_default=True, help="The seed of the first schedule.")
def main(schedules: int, seed: int) -> None:
    began = time.monotonic()
    with click.progressbar(length=schedules, label="schedules", file=sys.stderr) as bar:
        counts, broken = run_all(seed, schedules, bar.update)
    if broken is not None:
        click.echo("\n".join(broken))
        sys.exit(1)
    click.echo(f"schedules={schedules} violations=0 seconds={time.monotonic() - began:.0f}")
    for what, count in sorted(counts.items()):
        click.echo(f"{what}: {count}")


if __name__ == "__main__":
    main()
