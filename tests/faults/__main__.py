"""`python -m faults PLAN …`, in the folder `tests`: break things on Apache Kafka, compare with the oracle."""

import json
import signal
import sys
import time
import traceback
from pathlib import Path

import click
import msgspec

from callfunnel.agents.versions import installed_version
from deploy.kafka import kraft
from faults.lab import Lab
from faults.plans import PLANS, SETS
from faults.stream import Mix


@click.command(help=__doc__)
@click.argument("plans", nargs=-1, required=True, metavar="PLAN…")
@click.option("--seed", type=int, default=20080505, show_default=True, help="Repeats a run.")
@click.option("--events", type=int, help="Records to publish instead of the plan's own number.")
@click.option("--hot", type=click.FloatRange(0, 1), default=0.0, help="The share of events of ten hot leads.")
@click.option("--full", is_flag=True, help="The long run instead of the short one.")
@click.option("--again", is_flag=True, help="Once more where all numbers are right, the time it took is not.")
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write the figures to this file.")
@click.option("--keep", type=click.Path(path_type=Path), help="Keep the workers' logs in this folder.")
def main(
    plans: tuple[str, ...],
    seed: int,
    events: int | None,
    hot: float,
    full: bool,
    again: bool,
    report: Path | None,
    keep: Path | None,
) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started ends with us
    names = [name for given in plans for name in SETS.get(given, (given,))]
    if unknown := set(names) - PLANS.keys():
        known = ", ".join([*SETS, *PLANS])
        raise click.UsageError(f"no such plan: {', '.join(sorted(unknown))}; there are {known}")
    began = time.monotonic()
    found = []
    with Lab(keep, Mix(hot=hot)) as lab:
        for name in names:
            result = _run(lab, name, seed, events, full)
            if again and result["differences"] and result["exact"]:
                click.echo("  every number is right: once more")
                result = _run(lab, name, seed + 1, events, full)
            found.append(result)
            if report is not None:
                about = {"kafka": kraft.version(), "callfunnel": installed_version(), "plans": found}
                report.write_text(json.dumps(about, indent=1, default=msgspec.to_builtins))
    wrong = [result["plan"] for result in found if result["differences"]]
    click.echo(
        f"{len(found)} plans in {time.monotonic() - began:.0f} s: "
        + (f"WRONG: {', '.join(wrong)}" if wrong else "all as they must be")
    )
    sys.exit(1 if wrong else 0)


def _run(lab: Lab, name: str, seed: int, events: int | None, full: bool) -> dict[str, object]:
    plan = PLANS[name]
    size = plan.full if full else plan.short
    if events is not None:
        size = msgspec.structs.replace(size, events=events)
    click.echo(f"{name}: {plan.about}")
    began = time.monotonic()
    try:
        verdict, figures = plan.act(lab, name, seed, size)
        counted, differences, exact = str(verdict), verdict.differences, verdict.exact
        for remedy in sorted({*plan.remedies} ^ {*figures.get("remedies", ())}):
            differences.append(f"the remedy {remedy} is not the plan's, or was not carried out")
    except Exception as error:
        traceback.print_exc()
        counted, differences, figures, exact = "no verdict", [repr(error)[:2000]], {}, False
    seconds = round(time.monotonic() - began)
    hot = f" --hot {lab.mix.hot}" if lab.mix.hot else ""
    repeat = f"python -m faults {name} --seed {seed} --events {size.events}{hot}" + " --full" * full
    click.echo(f"  {counted} seed={seed} seconds={seconds}")
    click.echo(f"  {json.dumps(figures)}")
    for line in differences[:20]:
        click.echo(f"  DIFFERENT {line[:1500]}")
    if differences:
        click.echo(f"  {len(differences)} differences; repeat with: {repeat}")
    return {
        "plan": name, "seed": seed, "events": size.events, "seconds": seconds, "verdict": counted,
        "figures": figures, "exact": exact, "differences": differences, "repeat": repeat,
    }  # fmt: skip


if __name__ == "__main__":
    main()
