"""What is done to the workers and to Kafka: a plan is a size, faults in a seeded order, and the verdict."""

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from faults import baseline, brokers, inputs, poison, processes, routing, service, silence, surroundings
from faults.lab import Lab, Size
from faults.verify import Verdict


class Plan(Struct, frozen=True):
    about: str
    act: Callable[[Lab, str, int, Size], tuple[Verdict, dict[str, Any]]]
    short: Size
    full: Size
    remedies: tuple[str, ...] = ()
    """What it carries out of `agents.remedies`, as an operator would, before everything is counted."""


PLANS = {
    "kills": Plan(
        "random SIGKILLs of 3 workers", processes.kills, Size(60_000, 6, 20), Size(2_000_000, 100, 400)
    ),
    "views": Plan(
        "3 workers with views are killed, leave and join: each page is a prefix of what was published",
        processes.views,
        Size(20_000, 4, 30),
        Size(400_000, 30, 400),
    ),
    "rebalances": Plan(
        "4 workers join and leave by SIGTERM under load",
        processes.rebalances,
        Size(20_000, 6, 20),
        Size(400_000, 50, 220),
    ),
    "zombies": Plan(
        "workers stopped for 1.5 sessions wake up, every other time after compaction",
        processes.zombies,
        Size(20_000, 2, 25),
        Size(200_000, 20, 300),
    ),
    "restarts": Plan(
        "the only broker is stopped, killed, bounced",
        brokers.restarts,
        Size(20_000, 3, 30),
        Size(200_000, 12, 200),
    ),
    "permission": Plan(
        "the right to write a changelog is taken away",
        brokers.permission,
        Size(10_000, 2, 8),
        Size(20_000, 2, 20),
        remedies=("grant-rights",),
    ),
    "markers": Plan(
        "changelogs, dead letters never hear how a transaction ended",
        brokers.markers,
        Size(6_000, 3, 0),
        Size(50_000, 12, 0),
        remedies=("start-again",),
    ),
    "slow": Plan(
        "a full answer takes longer over the link than a client waits for it",
        brokers.slow,
        Size(40_000, 1, 0),
        Size(40_000, 1, 0),
    ),
    "leaders": Plan(
        "the leader of the source, a changelog, the group goes; 3 brokers",
        brokers.leaders,
        Size(60_000, 3, 110),
        Size(200_000, 12, 400),
    ),
    "copies": Plan(
        "a changelog has fewer copies than must acknowledge; 3 brokers",
        brokers.copies,
        Size(40_000, 1, 40),
        Size(100_000, 1, 40),
    ),
    "frozen": Plan(
        "the only broker is frozen: it answers nobody, and no connection breaks",
        silence.frozen,
        Size(3_000, 1, 7),
        Size(30_000, 1, 40),
    ),
    "mute": Plan(
        "one of 3 brokers is frozen: it still leads partitions for a while",
        silence.mute,
        Size(6_000, 1, 0),
        Size(30_000, 1, 0),
    ),
    "orphaned": Plan(
        "every worker is dead while the view lives and events arrive",
        silence.orphaned,
        Size(4_000, 1, 3),
        Size(20_000, 1, 130),
    ),
    **{
        name: Plan(about, act, Size(3_000, 1, 0), Size(30_000, 1, 0), tuple(remedies))
        for name, (act, about, *remedies) in surroundings.ACTS.items()
    },
    "anew": Plan(
        "a source hashed otherwise grows twice, copies and forged headers in it, and is counted anew",
        routing.anew,
        Size(3_000, 2, 0),
        Size(60_000, 2, 0),
        remedies=("count-anew",),
    ),
    "input": Plan(
        "a corpus of bad records, each with a known end, and mutations",
        inputs.cases,
        Size(40_000, 1, 0),
        Size(100_000, 1, 0),
    ),
    "garbage": Plan(
        "half of the records are garbage", inputs.garbage, Size(400_000, 1, 0), Size(1_000_000, 1, 0)
    ),
    "poison": Plan(
        "one partition gets nothing but poison while workers are killed",
        poison.named,
        Size(20_000, 2, 12),
        Size(200_000, 10, 80),
    ),
    "poison-stop": Plan(
        "a poisoned partition is stopped, alone, until an operator resumes it",
        poison.stopped,
        Size(12_000, 1, 0),
        Size(60_000, 4, 0),
        remedies=("resume",),
    ),
    "prometheus": Plan(
        "increase() in a real Prometheus while workers are killed",
        service.prometheus,
        Size(20_000, 2, 12),
        Size(300_000, 20, 120),
    ),
    "failover": Plan(
        "one of two workers is killed: the time to a right page",
        service.failover,
        Size(20_000, 2, 0),
        Size(100_000, 20, 0),
    ),
    "crowd": Plan(
        "clients hold 2,000 connections to a worker: idle, half a request, answers left unread",
        service.crowd,
        Size(8_000, 1, 10),
        Size(200_000, 5, 120),
    ),
    "clocks": Plan(
        "workers an hour ahead, an hour behind, jumping",
        service.clocks,
        Size(40_000, 1, 20),
        Size(200_000, 1, 90),
    ),
    "recovery": Plan(
        "restoring many leads: time and memory",
        service.recovery,
        Size(100_000, 1, 0),
        Size(1_000_000, 1, 0),
    ),
    "soak": Plan(
        "memory, descriptors and threads under a steady load",
        service.soak,
        Size(1_000, 1, 480),
        Size(1_000, 1, 1_800),
    ),
    "naive": Plan(
        "the kills again, for plain Faust tables",
        baseline.naive,
        Size(60_000, 15, 60),
        Size(200_000, 50, 200),
    ),
}

CI = (
    "kills",
    "views",
    "crowd",
    "restarts",
    "permission",
    "markers",
    "anew-filled",
    "adopted",
    "refolded",
    "changelog-anew",
    "dead-letters",
    "damaged",
    "anew",
    "frozen",
    "orphaned",
    "input",
    "poison-stop",
)
LONG = ("soak", "naive")
"""Not for a gate: the soak takes its time, and the naive program is not ours."""

SETS = {
    "ci": CI,
    "all": tuple(name for name in PLANS if name not in LONG),
    "topics": tuple(surroundings.ACTS),
    "brokers": ("restarts", "permission", "markers", "leaders", "copies"),
    "silence": ("frozen", "mute", "orphaned"),
}
"""Plans by one name: `ci` is the short set."""
