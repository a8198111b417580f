"""The exit codes of `callfunnel`, as in sysexits.h: a script sees from the code whose turn it is."""

OK = 0
NEGATIVE = 1
"""The command worked, and its verdict is no: lines were refused, tables are not equal."""
USAGE = 64
"""Wrong option, argument or setting: the caller has to change the command."""
UNAVAILABLE = 69
"""The broker does not answer, or what the command takes is not installed."""
SOFTWARE = 70
"""An internal error or a failed write."""
TEMPFAIL = 75
"""Start it again: a worker took itself out of service, or another run does the same now."""
CONFIG = 78
"""The topics are missing or have other settings."""
INTERRUPTED = 130
"""Ctrl-C."""
