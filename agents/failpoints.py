"""Places where a worker can be told to die as by kill -9: the proof that no moment is a bad one.

Off unless the setting `failpoint` names a place and which of its hits is the last. Nothing else happens here,
and nothing else in the product is there for tests.
"""

import os
import sys

POINTS = {
    "revoked": "a rebalance begins",
    "assigned": "partitions were given, and their former owners may still write",
    "fenced": "former owners can write no more",
    "restored": "some of the changelogs was read",
    "taken-over": "the states are built, and nothing is read yet",
    "ready": "the source flows",
    "delivered": "a batch waits for its turn",
    "folded": "the batch is in memory alone",
    "begun": "its transaction is open",
    "sent": "one topic's records are on their way: funnel rows first, then lead rows, then the others",
    "appended": "the broker has some of them",
    "written": "the broker has all of them, and nothing is committed",
    "committed": "its transaction is committed, and the worker has not heard",
    "acknowledged": "Faust knows of it, the group does not",
    "offset-sent": "the group's offset is about to be committed",
    "offset-committed": "the group's offset is committed",
}
"""When each is hit."""

_point = ""
_left = 0


def arm(setting: str | None) -> None:
    """Let this process die at `POINT:HIT`; None: never."""
    global _point, _left
    point, _, hit = (setting or ":0").partition(":")
    _point, _left = point, int(hit)


def hit(point: str) -> None:
    if point == _point:
        _count(point)


def _count(point: str) -> None:
    global _left
    _left -= 1
    if _left == 0:
        print(f"failpoint {point}", file=sys.stderr, flush=True)
        os._exit(137)
