"""What a lead costs that is only kept, and how soon a worker has them all back.

The run is the fault plan `recovery`, on Apache Kafka: a worker takes in leads, each with one call, and starts
again. Resident bytes of a lead are what it has more than a worker without leads, whatever the reason; beside
them stands what can be accounted for.
"""

import math
import sys
from pathlib import Path

import click

from bench import machine
from faults.lab import Lab, Size
from faults.run import PARTITIONS
from faults.service import recovery

GOALS = {"resident_bytes_per_lead": 230, "rows_per_second": 200_000, "seconds_to_ready": 10}


def accounted(leads: int, record_bytes: int) -> dict[str, int]:
    """Bytes of a lead in the tables of a worker: a table of pieces of memory, for each partition."""
    places = 1 << math.ceil(math.log2(leads / PARTITIONS * 8 / 7))
    return {
        "id_and_its_size": len("lead-000000000") + 2,
        "record": record_bytes,
        "place_in_the_table": round(17 * places * PARTITIONS / leads),
    }


@click.command()
@click.option("--leads", default=1_000_000, show_default=True, help="Leads in the tables.")
@click.option("--seed", default=20080505, show_default=True)
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write all figures to a file.")
def main(leads: int, seed: int, report: Path | None) -> None:
    """Memory of a worker for each lead it keeps, and the time until a worker that starts has them back.

    \b
      python -m bench.state                   a million leads
      python -m bench.state --leads 100000    a short look

    Ends with 1 when a lead is not in the tables, or not restored.
    """
    with Lab() as lab:
        verdict, found = recovery(lab, "recovery", seed, Size(leads, 1, 0))
    more_mib = found["memory_mib"] - found["memory_mib_without_leads"]
    more_seconds = found["seconds"] - found["seconds_without_leads"]
    more_cpu_seconds = found["cpu_seconds"] - found["cpu_seconds_without_leads"]
    figures = found | {
        "resident_bytes_per_lead": round(more_mib * 2**20 / leads),
        "accounted_bytes_per_lead": accounted(leads, found["record_bytes"]),
        "rows_per_second": round(found["rows"] / more_seconds) if more_seconds > 0.1 else None,
        "rows_per_cpu_second": round(found["rows"] / more_cpu_seconds),
        "seconds_to_ready": found["seconds"],
    }
    for name, value in figures.items():
        told = ""
        if goal := GOALS.get(name):
            met = value is None or (value >= goal if name == "rows_per_second" else value <= goal)
            told = f"  (goal {goal:,}: {'met' if met else 'missed'})"
        click.echo(f"{name}={'too fast to tell' if value is None else value}{told}")
    for line in verdict.differences:
        click.echo(f"WRONG: {line}")
    machine.write(report, figures=figures, differences=verdict.differences)
    if verdict.differences:
        sys.exit(1)


if __name__ == "__main__":
    main()
