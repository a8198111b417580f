"""What ends a command, as exceptions: each says who is to blame and what to do, and carries its exit code.

Failure (click prints the message, the process leaves with `exit_code`)
  SettingError        64   a CALLFUNNEL_ variable or an option
  BrokerUnavailable   69   no broker answers
  WriteFailed         70   the tables could not be written
  Stalled             70   there is work and no progress
  TakenOver           75   another worker owns what this one held
  Mended              75   the tables were put right: what was read before is not all
  Busy                75   another run does the same now
  TopicsWrong         78   topics are missing or have other settings
  TablesWrong         78   the tables contradict the source or the settings
"""

import click

from callfunnel.agents import exit_codes


class Failure(click.ClickException):
    """Broken surroundings: the message is for the person who can mend them."""

    exit_code = exit_codes.SOFTWARE


class SettingError(Failure):
    """A setting is unknown, out of range or contradicts another."""

    exit_code = exit_codes.USAGE


class BrokerUnavailable(Failure):
    """No broker answers, or none can be started."""

    exit_code = exit_codes.UNAVAILABLE


class TopicsWrong(Failure):
    """A topic is missing or is not as it has to be."""

    exit_code = exit_codes.CONFIG


class TablesWrong(Failure):
    """The tables contradict the source or the settings; a person has to decide."""

    exit_code = exit_codes.CONFIG


class WriteFailed(Failure):
    """The tables could not be written: the memory may be ahead of them, and only a fresh start is safe."""

    exit_code = exit_codes.SOFTWARE


class Stalled(Failure):
    """There is work and no progress."""

    exit_code = exit_codes.SOFTWARE


class TakenOver(Failure):
    """Another worker owns what this one held; starting again is right."""

    exit_code = exit_codes.TEMPFAIL


class Mended(Failure):
    """The tables were put right after they had been read; starting again is right."""

    exit_code = exit_codes.TEMPFAIL


class Busy(Failure):
    """Another run does the same now; starting again later is right."""

    exit_code = exit_codes.TEMPFAIL
