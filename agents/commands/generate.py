"""`callfunnel generate`: events of a floor that never was, as a file or as a live stream."""

import click

_MONDAY = "2026-01-05T09:00:00Z"


@click.command("generate")
@click.option("--events", type=click.IntRange(min=1), metavar="N", help="Stop after N events.")
@click.option("--live", is_flag=True, help="Go on for ever, at the pace of the clock.")
@click.option(
    "--seed", type=int, metavar="S", help="Same seed, same events. [default: 1; the time for --live]"
)
@click.option("--start", metavar="TIME", help=f"When the file begins, RFC 3339. [default: {_MONDAY}]")
@click.option("--seats", type=click.IntRange(1, 100_000), metavar="N", help="Agents at work. [default: 100]")
@click.option(
    "--rate", type=click.FloatRange(0.1, 20_000), metavar="N", help="As many seats as make N events/s."
)
@click.option("--faults", is_flag=True, help="Late, repeated and unordered events, calls that never end.")
@click.option(
    "--poison", type=click.FloatRange(0, 1), default=0.0, metavar="SHARE", help="Add invalid events."
)
def command(
    events: int | None,
    live: bool,
    seed: int | None,
    start: str | None,
    seats: int | None,
    rate: float | None,
    faults: bool,
    poison: float,
) -> int:
    """Write the events of a made-up telesales floor to standard output, one JSON object a line.

    A file (--events) depends on its options alone. A live stream (--live) begins with the last hour of the
    floor and goes on in real time; pipe it into `callfunnel publish -`.

    \b
    Examples:
      callfunnel generate --events 100000 --seed 7 --faults > floor.jsonl
      callfunnel generate --live --rate 20 | callfunnel publish -
    """
    import os
    import sys
    import time
    from datetime import datetime
    from itertools import islice

    import orjson
    from msgspec.structs import replace

    from callfunnel.agents import exit_codes
    from callfunnel.agents.demo import generator
    from callfunnel.schemas.events import FIRST_MS

    if not events and not live:
        raise click.UsageError("Say how much: --events N for a file, --live for a stream without end.")
    if live and start:
        raise click.UsageError("A live stream begins now: leave out --start, or --live.")
    if seats and rate:
        raise click.UsageError("--seats and --rate both set the size of the floor: give one of them.")

    now_ms = time.time_ns() // 1_000_000
    if live:
        start_ms = now_ms
    else:
        try:
            begins = datetime.fromisoformat(start or _MONDAY)
        except ValueError:
            begins = None
        if begins is None or begins.tzinfo is None:
            raise click.UsageError(f"--start {start}: a time with its offset is needed, such as {_MONDAY}.")
        start_ms = int(begins.timestamp() * 1000)
        if start_ms < FIRST_MS + 86_400_000:  # a file begins with what happened an hour before
            raise click.UsageError(f"--start {start}: an event's time is a whole number from March 1973 on.")
    if seed is None:
        seed = now_ms // 1000 if live else 1

    floor = generator.FloorSettings()
    if seats:
        floor = replace(floor, seats=seats)
    elif rate:
        floor = floor.at_rate(rate)
    wrong = replace(generator.TYPICAL_FAULTS if faults else generator.Faults(), poison=poison)

    out = sys.stdout.buffer
    try:
        for at_ms, event in islice(generator.live(seed, floor, start_ms, wrong), events):
            if live and (wait_ms := at_ms - time.time_ns() // 1_000_000) > 0:
                out.flush()
                time.sleep(wait_ms / 1000)
            out.write(orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE))
        out.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())  # else Python complains again when it exits
    except KeyboardInterrupt:
        return exit_codes.INTERRUPTED
    return exit_codes.OK
