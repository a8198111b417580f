"""`callfunnel publish`: a file of events to Kafka, each one acknowledged or told back."""

import click

from callfunnel.agents.publish.event_file import EventFile


@click.command("publish")
@click.argument("file", type=EventFile())
@click.option("--broker", metavar="HOST:PORT", help="Where Kafka listens.")
@click.option("--topic", metavar="NAME", help="Publish to this topic instead of the source topic.")
@click.option("--replay", is_flag=True, help="Records carry the time of their event: for a history.")
@click.option(
    "--rate", type=click.FloatRange(min=0, min_open=True), metavar="N", help="Most events a second."
)
@click.option(
    "--resume-file", type=click.Path(dir_okay=False), metavar="PATH", help="Keep the progress here."
)
@click.option("--from-start", is_flag=True, help="Forget the progress of an earlier run.")
@click.option(
    "--resume-anyway", is_flag=True, help="Go on behind it, even if the file or the topic is another one."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as one line of JSON.")
def command(
    file: str,
    broker: str | None,
    topic: str | None,
    replay: bool,
    rate: float | None,
    resume_file: str | None,
    from_start: bool,
    resume_anyway: bool,
    as_json: bool,
) -> int:
    """Publish FILE (one JSON event a line; - is standard input) and account for every line.

    Each event is checked as the engine does, keyed by its lead and acknowledged by all replicas. Lines that
    break the contract are not sent: they are named with the reason, and the exit code is 1. After Ctrl-C or a
    crash the same command goes on where it stopped; an event that is sent twice counts once. If the lines
    before that place are not the same any more, or the topic is not the one that took them, it asks; where
    nobody can be asked, it publishes nothing and the exit code is 64.

    \b
    Example:
      callfunnel generate --events 1000 --seed 7 > day.jsonl
      callfunnel publish day.jsonl --replay
    """
    import os
    from pathlib import Path

    from callfunnel.agents.config import Settings
    from callfunnel.agents.publish.file import Start, publish_file, publish_stdin
    from callfunnel.agents.publish.resume import Checkpoint, state_folder

    settings = Settings.from_environ(os.environ, broker=broker, source_topic=topic)
    if file == "-":
        if resume_file or from_start or resume_anyway:
            raise click.UsageError(
                "Standard input is read once: --resume-file, --from-start and --resume-anyway need a FILE."
            )
        return publish_stdin(settings, replay=replay, rate=rate, as_json=as_json)

    destination = f"{settings.source_topic} at {settings.broker}"
    if resume_file:
        checkpoint = Checkpoint(Path(resume_file), Path(file), destination)
    else:
        checkpoint = Checkpoint.in_folder(state_folder(os.environ), Path(file), destination)
    if from_start and resume_anyway:
        raise click.UsageError("--from-start and --resume-anyway contradict each other.")
    start: Start = "from-start" if from_start else "resume-anyway" if resume_anyway else "resume"
    return publish_file(
        settings, Path(file), checkpoint, replay=replay, rate=rate, as_json=as_json, start=start
    )
