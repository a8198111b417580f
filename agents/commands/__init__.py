"""One thin file per command of `callfunnel`; each defines `command`."""
