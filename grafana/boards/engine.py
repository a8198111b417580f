"""Whether the numbers can be trusted: workers, freshness, lag, what was refused, and what it all costs."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana import frame
from grafana.frame import Section
from grafana.panels import COUNT, SECONDS, SHARE, Column, Query, heat, limits, lines, stat, table
from grafana.promql import Scope, ratio

UID = "callfunnel-engine"

_BYTES, _PER_SECOND = "bytes", "cps"


scope = Scope({"job": '=~"$job"'})
watermark = scope.series("callfunnel_watermark_timestamp_seconds")


def of_partition(name: str) -> str:
    """While a partition changes hands, two workers may tell of it: the truth is not the sum."""
    return f"max by (topic, partition) ({scope.series(name)})"


lag = of_partition("callfunnel_worker_consumer_lag")


def quantile(q: float, name: str) -> str:
    return f"histogram_quantile({q:g}, {scope.rate(f'{name}_bucket', 'le')})"


def newest(name: str, by: str = "") -> str:
    """A figure that every replica of the view has for itself: the largest."""
    return f"max{f' by ({by})' if by else ''} ({scope.series(name)})"


consumed = scope.rate("callfunnel_worker_events_consumed_total")
rejected = scope.rate("callfunnel_worker_events_rejected_total")
up = scope.series("up")
ready = scope.series("callfunnel_worker_ready")
waiting = f"max by (job, partition) ({scope.series('callfunnel_view_source_lag_records')})"


def trust() -> Section:
    return Section(
        "Can the numbers be trusted?",
        [
            stat(
                "Processes up",
                "Workers and views that answer Prometheus, beside those it knows.",
                COUNT,
                Query(f"sum({up})", "up"),
                Query(f"count({up})", "known"),
                beside=["known"],
            ),
            stat(
                "Workers ready",
                "Workers that fold their partitions, beside those that run. The others join, restore, or get "
                "no answer from the broker.",
                COUNT,
                Query(f"sum({ready})", "ready"),
                Query(f"count({ready})", "run"),
                beside=["run"],
            ),
            stat(
                "Waiting",
                "Records of the source that are not in the numbers yet, as the broker told the view.",
                COUNT,
                Query(f"sum({waiting})", "records"),
                colours=limits(10_000, 100_000),
            ),
            stat(
                "Consumed",
                "Records read from the source per second.",
                _PER_SECOND,
                Query(consumed, "consumed"),
            ),
            stat(
                "Rejected",
                "Records refused and sent to the dead letters ÷ records read. Above 1 % a system publishes "
                "what it should not.",
                SHARE,
                Query(ratio(rejected, consumed), "rejected"),
                Query(consumed, "read per second"),
                colours=limits(0.001, 0.01),
                beside=["read per second"],
                decimals=2,
            ),
            stat(
                "Partitions",
                "Partitions of the source by what the workers do with them.",
                COUNT,
                Query(scope.total("callfunnel_worker_partitions", "state"), "{{state}}"),
            ),
        ],
        [
            lines(
                "Newest event by partition",
                "Age of the newest event of each partition. All of them: nothing is published, or the "
                "workers stand. One of them: its worker stands, or its leads are quiet.",
                SECONDS,
                Query(f"time() - max by (partition) ({watermark})", "{{partition}}"),
            ),
            lines(
                "Waiting by partition",
                "Records of the source that are not in the numbers yet, as the broker told the view: also "
                "those of partitions that no worker owns. A line ends where nobody knows.",
                COUNT,
                Query(waiting, "{{partition}}"),
            ),
            lines(
                "Time from event to fold",
                "p50, p90 and p99 of the wall clock at the batch − event time: how late events arrive here.",
                SECONDS,
                *(
                    Query(quantile(q, "callfunnel_worker_event_delay_seconds"), f"p{q * 100:g}")
                    for q in (0.5, 0.9, 0.99)
                ),
            ),
        ],
        [
            lines(
                "Answers of the broker",
                "How long ago a broker last answered each worker and each view. More than seconds: it is cut "
                "off, or the broker stands still.",
                SECONDS,
                *(
                    Query(
                        f"time() - {scope.each(f'callfunnel_{of}_broker_answer_timestamp_seconds')}",
                        f"{of} {{{{instance}}}}",
                    )
                    for of in ("worker", "view")
                ),
            ),
            lines(
                "Lag as the workers know it",
                "Records of the source that are not yet in the tables, by partition. No line: no worker owns "
                "the partition, or its worker does not know.",
                COUNT,
                Query(lag, "{{topic}} {{partition}}"),
            ),
            lines(
                "Changelog not yet read",
                "Records of the changelog that each view has not read: many while it starts, few afterwards.",
                COUNT,
                Query(scope.each("callfunnel_view_lag_records"), "{{instance}}"),
            ),
        ],
    )


def events() -> Section:
    return Section(
        "Events",
        [
            lines(
                "Consumed by worker",
                "Records read from the source per second, by worker.",
                _PER_SECOND,
                Query(
                    scope.rate("callfunnel_worker_events_consumed_total", "instance"),
                    "{{instance}}",
                ),
                stacked=True,
            ),
            lines(
                "Stage events",
                "Stage events per second in the tables, by campaign: falls to 0 when a dialer stops "
                "publishing.",
                _PER_SECOND,
                Query(
                    scope.rate("callfunnel_events_total", "funnel_stage"),
                    "{{funnel_stage}}",
                ),
                stacked=True,
            ),
            lines(
                "Rejected by reason",
                "Records refused per second and sent to the dead letters with their bytes untouched, by "
                "reason.",
                _PER_SECOND,
                Query(scope.rate("callfunnel_worker_events_rejected_total", "reason"), "{{reason}}"),
            ),
        ],
        [
            lines(
                "Not folded as they came",
                "Events per second that were known already, contradict another copy of the same event, came "
                "for a minute no longer held, were skipped because the tables had them (after a restart), or "
                "were sent on to the partition of their lead.",
                _PER_SECOND,
                *(
                    Query(scope.rate(f"callfunnel_worker_events_{what}_total"), what)
                    for what in ("duplicate", "conflicting", "late", "replayed", "rerouted")
                ),
                size=(6, 8),
            ),
            lines(
                "Rejected share by partition",
                "Of the newest records of each partition, the share that was rejected; those of crowded "
                "leads are left out. Above CALLFUNNEL_DLQ_MAX_SHARE the partition is poisoned.",
                SHARE,
                Query(of_partition("callfunnel_worker_rejected_share"), "{{topic}} {{partition}}"),
                size=(6, 8),
                soft_max=1,
            ),
            lines(
                "Poison",
                "Partitions that are poisoned, and leads that became crowded: their id is a placeholder, and "
                "events beyond the 4,000th are rejected.",
                COUNT,
                Query(f"sum({of_partition('callfunnel_worker_poisoned')})", "poisoned partitions"),
                Query(
                    scope.rate("callfunnel_worker_crowded_leads_total", function="increase"), "crowded leads"
                ),
                size=(6, 8),
            ),
            lines(
                "Lost before they were read",
                "Offsets that the broker deleted before a worker could read them, since the tables were "
                "begun: at most so many events are missing in the numbers. No line is the good case.",
                COUNT,
                Query(
                    scope.total("callfunnel_source_lost_records", "partition") + " > 0",
                    "{{partition}}",
                ),
                size=(6, 8),
            ),
        ],
    )


def workers() -> Section:
    return Section(
        "Workers",
        [
            lines(
                "Time of a batch",
                "p50 and p99 of the time from the start of a batch to its commit.",
                SECONDS,
                *(
                    Query(quantile(q, "callfunnel_worker_batch_seconds"), f"p{q * 100:g}")
                    for q in (0.5, 0.99)
                ),
            ),
            heat(
                "Size of batches",
                "Batches by the number of their events. Large ones mean that a worker catches up.",
                COUNT,
                scope.rate("callfunnel_worker_batch_events_bucket", "le", "increase"),
                size=(8, 8),
            ),
            lines(
                "Busy",
                "Share of the time that each worker spends in batches. Near 100 % it needs company.",
                SHARE,
                Query(scope.rate("callfunnel_worker_batch_seconds_sum", "instance"), "{{instance}}"),
                soft_max=1,
            ),
        ],
        [
            lines(
                "Rebalances",
                "Times that a worker's partitions changed. Often, without a deployment: workers die, or are "
                "too slow for their session.",
                COUNT,
                Query(
                    scope.rate("callfunnel_worker_rebalances_total", "instance", "increase"),
                    "{{instance}}",
                ),
            ),
            lines(
                "Recovery",
                "Records of the changelogs still to be restored, by table.",
                COUNT,
                Query(
                    scope.total("callfunnel_worker_recovery_remaining_records", "table"),
                    "{{table}}",
                ),
            ),
            lines(
                "Rows",
                "Rows that the workers hold by table, and those of the funnel table that the view holds.",
                COUNT,
                Query(scope.total("callfunnel_worker_table_rows", "table"), "workers: {{table}}"),
                Query(newest("callfunnel_view_rows"), "view: funnel"),
            ),
        ],
        [
            table(
                "What runs",
                "Versions of each worker. Folding by the definition takes eleven times the CPU of the core.",
                {"instance": "Worker", "version": "callfunnel", "python": "Python", "tables": "Tables"},
                Column(
                    "max by (instance, version, python, tables) "
                    f"({scope.series('callfunnel_worker_build_info')})",
                    "Runs",
                ),
                size=(24, 5),
            )
        ],
    )


def cost() -> Section:
    return Section(
        "Cost",
        [
            lines(
                "Series by family",
                "Series that the view exposes, by metric family, and the most a family may.",
                COUNT,
                Query(newest("callfunnel_view_series", "family"), "{{family}}"),
                Query(newest("callfunnel_view_series_limit"), "limit"),
            ),
            lines(
                "Series above the limit",
                "Series whose values went to the label value __other__. Above 0: raise "
                "CALLFUNNEL_SERIES_LIMIT, or publish fewer different names.",
                COUNT,
                Query(newest("callfunnel_view_series_overflowed", "family"), "{{family}}"),
            ),
            lines(
                "Time of a scrape",
                "Time that rendering took, beside the whole scrape as Prometheus saw it.",
                SECONDS,
                Query(newest("callfunnel_view_render_seconds"), "rendering"),
                Query(
                    f"max by (instance) ({scope.series('scrape_duration_seconds')})",
                    "scrape of {{instance}}",
                ),
            ),
        ],
        [
            lines(
                "Memory",
                "Resident memory of each process.",
                _BYTES,
                Query(
                    f"max by (instance) ({scope.series('process_resident_memory_bytes')})",
                    "{{instance}}",
                ),
            ),
            lines(
                "Processor",
                "Processor time per second of each process: 100 % is one core.",
                SHARE,
                Query(scope.rate("process_cpu_seconds_total", "instance"), "{{instance}}"),
            ),
            lines(
                "Open files",
                "Open files ÷ files that each process may open.",
                SHARE,
                Query(
                    f"max by (instance) ({scope.series('process_open_fds')} / "
                    f"{scope.series('process_max_fds')})",
                    "{{instance}}",
                ),
                soft_max=1,
            ),
        ],
    )


def build() -> Dashboard:
    return frame.build(
        UID,
        "The engine: workers, freshness and lag, throughput, refused and late events, recovery, cost.",
        [frame.job(multi=True)],
        [
            trust(),
            events(),
            workers(),
            cost(),
        ],
        several_jobs=True,
    )
