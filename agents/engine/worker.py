"""The worker: one process that owns some partitions, folds their events and serves what it sees.

This is the composition root: every part is made and joined here, and here the process ends, with a reason.
Faust gives the consumer group, the agent, the tables and their recovery; its web server is never started.
"""

import asyncio
import logging
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from aiokafka.errors import (
    GroupAuthorizationFailedError,
    KafkaError,
    TopicAuthorizationFailedError,
)
from faust.types import TP
from mode.supervisors import CrashingSupervisor

from callfunnel.agents import exit_codes, failpoints, log
from callfunnel.agents.choice import BY_DEFINITION, NotBuilt, not_built, tables_for
from callfunnel.agents.config import Settings
from callfunnel.agents.engine import resume
from callfunnel.agents.engine.ingest import Ingest
from callfunnel.agents.engine.metrics import EngineMetrics
from callfunnel.agents.engine.poison import Refusals
from callfunnel.agents.engine.source import Source, is_named
from callfunnel.agents.engine.transactions import Transactions
from callfunnel.agents.errors import BrokerUnavailable, Failure, SettingError, Stalled, TakenOver, TopicsWrong
from callfunnel.agents.kafka import app as kafka
from callfunnel.agents.kafka import connection, read_committed, topics
from callfunnel.agents.kafka.answers import Answers
from callfunnel.agents.kafka.changelog import funnel_positions
from callfunnel.agents.kafka.transport import SCHEME, Schema
from callfunnel.agents.scratch import Scratch
from callfunnel.agents.versions import installed_version
from callfunnel.agents.view import exposition
from callfunnel.agents.view.feed import OnCommit
from callfunnel.agents.view.http import Pages
from callfunnel.agents.view.snapshot import View
from callfunnel.schemas.codec import Decoder
from callfunnel.streams.by_definition import DefinedTables
from callfunnel.streams.engine import Partition
from callfunnel.streams.fold import Fold
from callfunnel.streams.panes import resolutions
from callfunnel.streams.poison import Tolerance
from callfunnel.streams.tables import Tables

logger = logging.getLogger(__name__)

FETCH_BYTES = 8 << 20
"""Of one partition in one answer: enough for a full batch, so that a backlog takes few transactions."""

TICK_SECONDS = 0.5
PATIENCE_SECONDS = 3.0
"""How long a worker that stops waits before it asks whether there is a broker to take leave of."""
STOP_SECONDS = 20.0
METADATA_MS = 10_000
"""How long a worker may miss that its source was deleted, made anew or given more partitions. Before it sends
events home, it asks."""


class App(kafka.App):
    """The Faust app of a worker: it says whether it can fold events, and ends the process where it cannot."""

    ingest: Ingest
    stopping = False
    """It was told to stop: from then on, others may take its partitions over."""

    def not_ready(self) -> str | None:
        """What keeps this worker from folding events, in words; None when nothing does."""
        return self.ingest.not_ready() or self.answers.silence()

    def fail(self, error: BaseException) -> None:
        """What the parts call when they cannot go on: the end of the process."""
        if self.stopping and isinstance(error, TakenOver):
            logger.info("another worker goes on already: its start ended our last batch")
            os._exit(exit_codes.OK)
        if isinstance(error, TakenOver) and (name := self.conf.consumer_group_instance_id):
            error = TakenOver(
                f"{error.message}. If another worker runs as CALLFUNNEL_INSTANCE={name}, too, give each a "
                "name of its own, or none"
            )
        end(error)


def fold_of(settings: Settings) -> Fold:
    return Fold(
        hangup_ms=settings.hangup_ms,
        late_ms=settings.late_ms,
        lead_events=settings.lead_events,
        timezone=settings.timezone,
        partitioner=settings.partitioner,
        resolutions=resolutions(
            settings.pane_retention_minute_hours,
            settings.pane_retention_hour_days,
            settings.pane_retention_day_days,
        ),
        event_days=settings.event_retention_days,
    )


def tables_of(settings: Settings) -> type[Tables]:
    """The class that folds events. Raises `SettingError` when it has to be the core's and there is none."""
    try:
        tables = tables_for(settings.tables)
    except NotBuilt as error:
        raise SettingError(str(error)) from None
    if tables is not DefinedTables:
        logger.info("folding by the core")
    elif settings.tables == "auto":
        logger.warning("folding %s: %s", BY_DEFINITION, not_built())
    else:
        logger.info("folding by the definition, as CALLFUNNEL_TABLES says")
    return tables


def partitions_of(settings: Settings, count: int, tables: type[Tables]) -> Callable[[int], Partition]:
    """The function that makes the empty state of a source partition."""
    fold = fold_of(settings)
    decoder = Decoder(settings.limits)
    tolerance = Tolerance(settings.dlq_share_window, settings.dlq_max_share)
    return lambda number: Partition(number, count, fold, decoder, tables, int(time.time() * 1000), tolerance)


def build(
    settings: Settings,
    count: int,
    tables: type[Tables],
    metrics: EngineMetrics,
    datadir: str,
    on_commit: OnCommit | None = None,
) -> App:
    """The Faust app for a source topic of `count` partitions; `on_commit` gets the rows that it commits."""
    read_committed.repair()
    answers = Answers(settings.stale_seconds)
    answers.hear({})  # it just said how many partitions there are
    app = App(
        settings.app_id,
        source_topic=settings.source_topic,
        partitions=count,
        tables_type=tables,
        answers=answers,
        broker=[f"{SCHEME}://{address}" for address in settings.brokers],
        broker_credentials=connection.faust_credentials(settings),
        store="memory://",
        datadir=datadir,
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        topic_partitions=count,
        topic_replication_factor=settings.replication_factor,
        table_standby_replicas=0,
        # What we wrote a moment ago may not count as committed yet; the law has its own checks in take_over.
        recovery_consistency_check=False,
        consumer_auto_offset_reset="earliest",
        consumer_group_instance_id=settings.instance,
        consumer_max_fetch_size=FETCH_BYTES,
        consumer_metadata_max_age_ms=METADATA_MS,
        broker_max_poll_records=settings.batch_events,
        broker_commit_interval=settings.commit_interval_seconds,
        broker_session_timeout=settings.session_timeout_seconds,
        broker_heartbeat_interval=settings.heartbeat_seconds,
        broker_rebalance_timeout=max(30.0, settings.session_timeout_seconds * 3),
        broker_request_timeout=max(30.0, settings.session_timeout_seconds + 5),
        stream_wait_empty=True,
        stream_buffer_maxsize=32,
        agent_supervisor=CrashingSupervisor,
        cython_optimizations=True,
        value_serializer="raw",
    )
    client, timeout_seconds = connection.aiokafka_options(settings), settings.transaction_timeout_seconds
    app.ingest = Ingest(
        app,
        app_id=settings.app_id,
        source=Source(client, settings.source_topic, timeout_seconds),
        dead_letters=settings.dead_letter_topic,
        transactions=Transactions(settings.app_id, client, timeout_seconds, settings.changelog_compression),
        new_partition=partitions_of(settings, count, tables),
        partitioner=settings.partitioner,
        batch_events=settings.batch_events,
        spacing_seconds=settings.batch_spacing_seconds,
        refusals=Refusals(metrics, settings.source_topic, settings.dead_letter_topic, settings.dlq_max_share),
        resumed=resume.asked(settings) if settings.dlq_stop else None,
        on_commit=on_commit,
        metrics=metrics,
        fail=app.fail,
    )
    source = app.topic(settings.source_topic, schema=Schema(), partitions=count, maxsize=16)

    @app.agent(source, name="ingest")  # type: ignore[untyped-decorator]
    async def ingest(stream: Any) -> None:
        stream.enable_acks = False
        async for event in stream.events():
            await app.ingest.take(event)

    return app


def end(error: BaseException) -> None:
    """End the process at once, with the reason. Nothing is tidied up: memory may be ahead of the tables."""
    if isinstance(error, KafkaError):
        error = _in_words(error)
    if isinstance(error, Failure):
        code = error.exit_code
        logger.critical("%s", error.format_message())
    else:
        code = exit_codes.SOFTWARE
        logger.critical("%r", error, exc_info=error)
    for handler in logging.getLogger().handlers:
        handler.flush()
    sys.stderr.flush()
    os._exit(code)


def _in_words(error: KafkaError) -> Failure:
    if isinstance(error, TopicAuthorizationFailedError | GroupAuthorizationFailedError):
        return TopicsWrong(
            f"This worker lacks a right ({error}). Nothing is lost. `callfunnel check` says which, and "
            "`callfunnel topics rights` prints the command that grants it."
        )
    return Stalled(
        f"Kafka does not do what this worker asks ({error!r}). Nothing is lost. Start again, and look at "
        "the brokers and the link to them if this repeats."
    )


async def serve(app: App, settings: Settings, metrics: EngineMetrics) -> None:
    """Run until SIGTERM or SIGINT; then drain, commit, leave the group."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    starting = asyncio.create_task(app.start())
    watch = asyncio.create_task(_watch(app, settings, metrics))
    stopping = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait({starting, stopping, watch}, return_when=asyncio.FIRST_COMPLETED)
    if starting in done:
        starting.result()
        done, _ = await asyncio.wait({stopping, watch}, return_when=asyncio.FIRST_COMPLETED)
    if watch in done:
        watch.result()
    logger.info("stopping: finishing the batches in hand")
    watch.cancel()
    app.stopping = True
    leaving = asyncio.create_task(_leave(app))
    done, _ = await asyncio.wait({leaving}, timeout=PATIENCE_SECONDS)
    if not done and not await asyncio.to_thread(_broker_answers, settings):
        logger.warning("no broker answers, so nobody is told; nothing is lost, the tables are committed")
        os._exit(exit_codes.OK)
    done, _ = await asyncio.wait({leaving}, timeout=STOP_SECONDS)
    if not done:
        end(Stalled(f"stopping took more than {STOP_SECONDS:g} s; nothing is lost, the tables are committed"))
    leaving.result()


async def _leave(app: App) -> None:
    await app.stop()
    await app.ingest.close()


def _broker_answers(settings: Settings) -> bool:
    try:
        connection.admin_client(settings, timeout_seconds=1.0).close()
    except BrokerUnavailable:
        return False
    return True


async def _watch(app: App, settings: Settings, metrics: EngineMetrics) -> None:
    """The watchdog: a worker that overslept, crashed inside or stands still ends with a reason."""
    last = time.monotonic()
    measured_at = 0.0
    joining: object = None
    joining_since = last
    silent = False
    while True:
        await asyncio.sleep(TICK_SECONDS)
        now = time.monotonic()
        if now - last - TICK_SECONDS > 0.8 * settings.session_timeout_seconds:
            end(
                TakenOver(
                    f"this worker stood still for {now - last:.1f} s: "
                    "its partitions are another's by now; start again"
                )
            )
        last = now
        if app.crashed:
            end(app.crash_reason or RuntimeError("the Faust app crashed without a reason"))
        if now - measured_at < 1.0:
            continue
        measured_at = now
        if settings.instance and app.consumer.has_twin():
            end(
                SettingError(
                    f"CALLFUNNEL_INSTANCE: another worker runs as {settings.instance!r}, too, and they take "
                    "each other's partitions. Nothing is lost. Give each worker a name of its own, or none."
                )
            )
        _measure(app, settings, metrics, now)
        silence = app.answers.silence()
        if silence and not silent:
            logger.warning("%s: what arrives is not counted before it answers; nothing is lost", silence)
        elif silent and not silence:
            logger.warning("the brokers answer again")
        silent = silence is not None
        state = app.ingest.not_ready() and (app.consumer_generation_id, _remaining(app))
        if state is None or state != joining:
            joining, joining_since = state, now
        elif now - joining_since > settings.stall_seconds:
            end(
                Stalled(
                    f"{app.ingest.not_ready()}, for {settings.stall_seconds:g} s without progress: "
                    "start again, and look at the broker if this repeats"
                )
            )


def _remaining(app: App) -> Mapping[TP, int]:
    """Changelog records still to be restored, by partition; empty outside of recovery."""
    recovery = app.tables.recovery
    return dict(recovery.active_remaining()) if recovery.in_recovery else {}


def _measure(app: App, settings: Settings, metrics: EngineMetrics, now: float) -> None:
    remaining = _remaining(app)
    metrics.partitions.labels("recovering").set(len({tp.partition for tp in remaining}) if remaining else 0)
    metrics.partitions.labels("deriving").set(app.ingest.deriving)
    for table in ("funnel", "leads"):
        topic = app.tables[table].changelog_topic_name
        metrics.recovery_remaining_records.labels(table).set(
            sum(n for tp, n in remaining.items() if tp.topic == topic and n > 0)
        )
    rows = app.ingest.rows()
    metrics.table_rows.labels("funnel").set(rows[0])
    metrics.table_rows.labels("leads").set(rows[1])
    metrics.tell(
        metrics.consumer_lag, {(tp.topic, str(tp.partition)): n for tp, n in app.ingest.lags().items()}
    )
    stalled = app.ingest.stalled(now, settings.stall_seconds)
    if stalled is not None:
        end(
            Stalled(
                f"{stalled} for {settings.stall_seconds:g} s: "
                "start again, and look at the broker if this repeats"
            )
        )


async def _refuse_another_source(settings: Settings, partitions: int) -> None:
    """A worker that was given another source must not disturb those that run: it is told before it joins.

    What cannot be read here is judged when partitions are taken over, where nothing escapes.
    """
    read_committed.repair()
    client = connection.aiokafka_options(settings)
    source = Source(client, settings.source_topic, settings.transaction_timeout_seconds)
    try:
        positions = await funnel_positions(client, settings.app_id, range(partitions))
        topic_id = await source.topic_id(0)
    except (Failure, KafkaError, TimeoutError):
        return
    finally:
        await source.close()
    for number, position in positions.items():
        is_named(number, position, source.topic, topic_id)


def run(settings: Settings) -> int:
    """Run a worker until it is told to stop; the exit code.

    Raises `BrokerUnavailable`, `TopicsWrong` and `SettingError` before there is any work; what fails later
    ends the process by itself.
    """
    log.set_up(settings.log_format, settings.log_level)
    failpoints.arm(settings.failpoint)
    tables = tables_of(settings)
    topics.wait_for_broker(settings, logger.warning)
    count = topics.require(settings)
    asyncio.run(_refuse_another_source(settings, count))
    registry = exposition.new_registry()
    metrics = EngineMetrics(registry)
    folds = "definition" if tables is DefinedTables else "core"
    metrics.build_info.info(
        {"version": installed_version(), "python": platform.python_version(), "tables": folds}
    )
    view = View.of(settings) if settings.view else None
    with Scratch("worker") as scratch:
        datadir = str(scratch.path / "faust")
        app = build(settings, count, tables, metrics, datadir, view.hand if view else None)

        metrics.ready.set_function(lambda: app.not_ready() is None)
        metrics.broker_answer_timestamp_seconds.set_function(lambda: app.answers.timestamp_seconds or 0.0)

        def not_ready() -> str | None:
            return app.not_ready() or app.ingest.why_stopped() or (view.not_ready() if view else None)

        pages = Pages.of(
            settings,
            view=view,
            exposition=exposition.Exposition.of(settings, view, registry),
            not_ready=not_ready,
        )
        pages.start()
        logger.info("serving %s", pages.url)
        if view:
            view.start()
        try:
            asyncio.run(serve(app, settings, metrics))
        finally:
            if view:
                view.stop()
            pages.stop()
    return exit_codes.OK
