"""What happens to Kafka itself: brokers stop, are killed, lead no more, have too few copies, forbid to write.

The promise: exact after healing. A worker may end meanwhile, with a reason, and a supervisor starts it again.
"""

import time
from pathlib import Path
from typing import Any

from confluent_kafka import ElectionType, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)

from callfunnel.agents import exit_codes
from callfunnel.agents.demo.broker import HOST, free_port
from callfunnel.schemas.topics import funnel_changelog, leads_changelog
from faults.lab import Lab, Size, configure, kraft
from faults.link import SlowLink
from faults.run import PARTITIONS, Run
from faults.verify import Verdict

OUTAGE_SECONDS = 5.0
SLOW_BYTES_A_SECOND = 128 * 1024
UNHEARD = (
    ("before", "letters", "aborted"),
    ("after", "letters", "committed"),
    ("after", "funnel leads", "committed"),
    ("before", "funnel", "aborted"),
    ("after", "leads letters", "committed"),
    ("before", "funnel leads", "aborted"),
    ("after", "funnel", "committed"),
    ("before", "leads", "aborted"),
    ("after", "leads", "committed"),
    ("before", "funnel letters", "aborted"),
    ("before", "funnel leads letters", "aborted"),
    ("after", "funnel leads letters", "aborted"),  # nobody can tell: it is done again
)
"""When a worker dies, before or after its commit; what never hears of it; what has to become of that."""
UNMARKED = (str(Path(__file__).with_name("unmarked.py")),)


def restarts(lab: Lab, name: str, seed: int, size: Size) -> tuple[Verdict, dict[str, Any]]:
    """The only broker is stopped, killed and bounced under load."""
    cluster = lab.cluster()
    (node,) = cluster.nodes
    with lab.run(name, seed=seed, events=size.events, workers=2) as run:
        run.begin_oracle()
        run.start_workers()
        run.publisher.start(run.first, size.seconds)
        resumed = []
        for number in range(size.times):
            run.sleep(run.chance.uniform(1, 3))
            way = ("stop", "kill", "bounce")[number % 3]
            if way == "kill":
                node.kill()
            else:
                node.stop()
            if way != "bounce":
                run.sleep(OUTAGE_SECONDS)
            node.start()
            began = time.monotonic()
            _wait(run, cluster)
            resumed.append((way, round(_until_it_moves(run, began), 1)))
        return run.finish(), run.figures | {"resumed_seconds": resumed}


def markers(lab: Lab, name: str, seed: int, size: Size) -> tuple[Verdict, dict[str, Any]]:
    """Some topics never hear that a transaction was committed, or aborted; the next start decides it."""
    cluster = lab.cluster()
    with lab.run(name, seed=seed, events=size.events, workers=1) as run:
        (slot,), (node,) = run.slots, cluster.nodes
        topics = {
            "funnel": funnel_changelog(run.settings.app_id),
            "leads": leads_changelog(run.settings.app_id),
            "letters": run.settings.dead_letter_topic,
        }
        run.begin_oracle()
        run.start_workers()
        configure(run.admin, node.number, transaction_partition_verification_enable="false")
        decided = []
        for dies, left_out, verdict in UNHEARD[: size.times]:
            slot.stop()
            run.publisher.start(run.first // (size.times + 1))
            run.publisher.finish()
            environ = {"DIES": dies, "LEFT_OUT": " ".join(topics[one] for one in left_out.split())}
            died = slot.start(environ, program=UNMARKED)
            slot.wanted = False
            run.expect(died.exit_code(30) == 137, f"it did not die {dies} its commit: {slot.last_words}")
            following = slot.start()
            if left_out == "letters":
                following.wait_until_ready()
            else:
                run.until(lambda it=following: slot.worker is not it, 30, "it ends to start again")
                code = following.process.returncode
                run.expect(code == exit_codes.TEMPFAIL, f"it ended with {code}")
                run.carries_out("start-again")
            said = "\n".join(line for line in following.log.splitlines() if "undecided" in line)
            others = verdict == "committed" or "committed" not in said  # partitions that die in the middle
            run.expect(verdict in said and others, f"not {verdict}: {said}")
            decided.append(f"{left_out}: {verdict}")
            slot.worker.wait_until_ready()
        configure(run.admin, node.number, transaction_partition_verification_enable="true")
        return run.finish(), run.figures | {"decided": decided}


def leaders(lab: Lab, name: str, seed: int, size: Size) -> tuple[Verdict, dict[str, Any]]:
    """Of three brokers, the leader of the source, a changelog or the group goes; then the lead moves back."""
    cluster = lab.cluster(3)
    with lab.run(name, brokers=3, seed=seed, events=size.events, workers=2) as run:
        run.begin_oracle()
        run.start_workers()
        run.publisher.start(run.first, size.seconds)
        roles = (run.settings.source_topic, funnel_changelog(run.settings.app_id), "__consumer_offsets")
        everywhere = [TopicPartition(topic, number) for topic in roles[:2] for number in range(PARTITIONS)]
        resumed = []
        for number in range(size.times):
            role = roles[number % len(roles)]
            run.sleep(run.chance.uniform(1, 3))
            lead = run.admin.list_topics(role, timeout=20).topics[role].partitions[0].leader
            node = next(node for node in cluster.nodes if node.number == lead)
            if number % 2:
                node.kill()
            else:
                node.stop()
            began = time.monotonic()
            resumed.append(round(_until_it_moves(run, began), 1))
            run.sleep(OUTAGE_SECONDS)
            node.start()
            _wait(run, cluster)
            run.until(lambda: _elected(run, everywhere), 40, "the preferred brokers lead again")
        return run.finish(), run.figures | {"resumed_seconds": resumed}


def copies(lab: Lab, name: str, seed: int, size: Size) -> tuple[Verdict, dict[str, Any]]:
    """For 20 s a changelog has one copy less than must acknowledge: nothing may be counted as written."""
    cluster = lab.cluster(3)
    with lab.run(name, brokers=3, seed=seed, events=size.events, workers=2) as run:
        run.begin_oracle()
        run.start_workers()
        run.publisher.start(run.first, size.seconds)
        run.sleep(3)
        changelog = funnel_changelog(run.settings.app_id)
        configure(run.admin, changelog, min_insync_replicas="3")
        down = cluster.nodes[2]
        down.stop()
        run.sleep(2)
        before = run.positions()
        run.sleep(18)
        after = run.positions()
        run.expect(before == after, f"went on from {before} to {after} while nothing could be written")
        down.start()
        began = time.monotonic()
        _wait(run, cluster)
        resumed = _until_it_moves(run, began)
        configure(run.admin, changelog, min_insync_replicas="2")
        for slot in run.slots:
            said = slot.worker.log if slot.starts == 1 else _logs(run, slot.name)
            run.expect("min.insync" in said or "NotEnoughReplicas" in said, f"{slot.name} did not say why")
        return run.finish(), run.figures | {"resumed_seconds": round(resumed, 1)}


def permission(lab: Lab, name: str, seed: int, size: Size) -> tuple[Verdict, dict[str, Any]]:
    """The right to write a changelog is taken away: the worker ends within 5 s and names the topic."""
    with lab.run(name, seed=seed, events=size.events, workers=1) as run:
        run.begin_oracle()
        run.start_workers()
        (slot,) = run.slots
        run.publisher.start(run.first, size.seconds)
        took = []
        for changelog in (funnel_changelog, leads_changelog):
            run.until(lambda: _applied(run) > 0, 30, "the worker counts")
            topic = changelog(run.settings.app_id)
            rule = ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, "User:*", "*"
            denied = AclBinding(*rule, AclOperation.WRITE, AclPermissionType.DENY)
            slot.wanted = False
            run.admin.create_acls([denied])[denied].result(20)
            began = time.monotonic()
            code = slot.worker.exit_code(30)
            took.append(round(time.monotonic() - began, 2))
            run.expect(code == exit_codes.SOFTWARE, f"it ended with {code}: {slot.last_words}")
            run.expect(took[-1] <= 5, f"it took {took[-1]} s")
            run.expect(topic in slot.last_words, f"{topic} is not named: {slot.last_words}")
            anyway = AclBindingFilter(*rule, AclOperation.WRITE, AclPermissionType.DENY)
            run.carries_out("grant-rights")
            run.admin.delete_acls([anyway])[anyway].result(20)
            slot.start().wait_until_ready()
        return run.finish(), run.figures | {"ended_after_seconds": took}


def slow(lab: Lab, name: str, seed: int, size: Size) -> tuple[Verdict, dict[str, Any]]:
    """A worker catches up over a link on which a full answer takes longer than a client waits for it."""
    listener, link = free_port(), free_port()
    own = "PLAINTEXT://${host}:${port},CONTROLLER://${host}:${controller_port}"
    properties = {
        "listeners": f"{own},SLOW://${{host}}:{listener}",
        "advertised.listeners": f"{own},SLOW://${{host}}:{link}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SLOW:PLAINTEXT",
    }
    with kraft.Cluster(properties=properties) as cluster, SlowLink(link, listener, SLOW_BYTES_A_SECOND):
        settings = {"batch_events": 20_000, "view": False}
        with lab.run(
            name, seed=seed, events=size.events, workers=1, address=cluster.address, **settings
        ) as run:
            run.begin_oracle()
            run.publisher.start(run.first)
            run.publisher.finish()
            (slot,) = run.slots
            began = time.monotonic()
            slot.start(broker=f"{HOST}:{link}", view=False).wait_until_ready()
            run.until(lambda: _applied(run) >= run.first, 300, "the worker catches up")
            run.figures["over_the_link_seconds"] = round(time.monotonic() - began)
            slot.stop(within_seconds=20)
            return run.finish(), run.figures


def _applied(run: Run) -> float:
    return sum(slot.worker.metric("callfunnel_worker_events_consumed_total") for slot in run.running())


def _until_it_moves(run: Run, since: float) -> float:
    """How long after `since` the workers counted something new, while there is something to count."""
    before = {slot.pid: slot.worker.metric("callfunnel_worker_events_consumed_total") for slot in run.slots}

    def moves() -> bool:
        return run.publisher.is_done or any(
            slot.worker.metric("callfunnel_worker_events_consumed_total") > before.get(slot.pid, 0.0)
            for slot in run.running()
        )

    run.until(moves, 60, "the workers go on")
    return time.monotonic() - since


def _wait(run: Run, cluster: Any) -> None:
    """Until the cluster is whole; the workers are tended before and after, not meanwhile."""
    run.tend()
    cluster.wait()
    run.tend()


def _elected(run: Run, partitions: list[TopicPartition]) -> bool:
    """Ask for the preferred leaders; whether every one of them leads."""
    results = run.admin.elect_leaders(ElectionType.PREFERRED, partitions).result(20)
    return all(error is None or error.name() == "ELECTION_NOT_NEEDED" for error in results.values())


def _logs(run: Run, name: str) -> str:
    return "\n".join(log.read_text(errors="replace") for log in sorted(run.folder.glob(f"{name}-*.log")))
