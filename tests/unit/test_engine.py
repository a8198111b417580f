from itertools import pairwise

import pytest
from held import restore
from msgspec.json import encode
from msgspec.structs import replace

from callfunnel.schemas.codec import Decoder, Limits
from callfunnel.schemas.events import Connect, Dial, LeadCreated
from callfunnel.streams.engine import Mismatch, Partition
from callfunnel.streams.fold import Fold
from callfunnel.streams.log import unpack
from callfunnel.streams.panes import resolutions
from callfunnel.streams.partitioning import home
from callfunnel.streams.rows import (
    LEADS_POSITION_KEY,
    POSITION_KEY,
    Position,
    Witness,
    decode_key,
    decode_position,
    encode_position,
)
from callfunnel.streams.tables import archived

T = 1_750_000_020_000
FOLD = Fold(
    hangup_ms=15_000,
    late_ms=600_000,
    lead_events=3,
    timezone="UTC",
    partitioner="murmur2",
    resolutions=resolutions(),
)
DECODER = Decoder(Limits())


@pytest.fixture
def partition(tables):
    """Partition 0 of a source that has no other, unless a test says otherwise."""
    return lambda number=0, partitions=1, fold=FOLD: Partition(number, partitions, fold, DECODER, tables)


def lead_of(number, partitions=8, partitioner="murmur2"):
    """A lead that is at home on partition `number` of so many."""
    names = (f"lead-{n}" for n in range(1_000))
    return next(name for name in names if home(name.encode(), partitions, partitioner) == number)


def event(cls=Dial, event_id="e", lead_id="l", at_ms=T, **fields):
    return cls(event_id=event_id, lead_id=lead_id, occurred_at=at_ms, **fields)


def apply(state, *events, appended_ms=T, end=None, stuck=()):
    """Fold events, or bytes that are none, as one batch."""
    values = [one if isinstance(one, bytes | None) else encode(one) for one in events]
    keys, times = [None] * len(values), [appended_ms] * len(values)
    end = (state.offset or 0) + len(values) if end is None else end
    return state.apply(values, keys, times, end, frozenset(stuck))


def position(effects):
    return decode_position(dict(effects.funnel)[POSITION_KEY])


def ever(state):
    """The columns of all days, whatever the place."""
    sums = {}
    for (resolution, _, rollup, *_), columns in state.tables.rows().items():
        if resolution == "1d" and rollup == "location":
            for column, n in columns.items():
                sums[column] = sums.get(column, 0) + n
    return sums


def changelogs(*effects):
    """What the two changelogs hold after these batches."""
    funnel, leads = {}, {}
    for one in effects:
        for rows, changes in ((funnel, one.funnel), (leads, one.leads)):
            for key, value in changes:
                rows.pop(key, None)
                if value is not None:
                    rows[key] = value
    return funnel, leads


# Counting


def test_an_event_counts_once_however_often_it_comes(partition):
    state = partition()
    effects = apply(state, event(), event(), event(event_id="other"))
    assert ever(state) == {"events_dialed": 2, "leads_created": 1, "leads_dialed": 1, "implied": 1}
    assert effects.duplicates == 1
    assert apply(state, event()).duplicates == 1
    assert ever(state)["events_dialed"] == 2


def test_two_leads_may_use_the_same_event_id(partition):
    state = partition()
    assert apply(state, event(lead_id="a"), event(lead_id="b")).duplicates == 0
    assert ever(state)["leads_dialed"] == 2


def test_a_batch_of_duplicates_changes_nothing_but_the_position(partition):
    state = partition()
    apply(state, event())
    effects = apply(state, event(), appended_ms=T + 1)
    assert [key for key, _ in effects.funnel] == [POSITION_KEY]
    assert [key for key, _ in effects.leads] == [LEADS_POSITION_KEY]
    assert position(effects).watermark_ms == T


def test_a_copy_that_says_something_else_is_taken_in_and_counts_as_activity_alone(partition):
    state = partition()
    apply(state, event())
    effects = apply(state, event(at_ms=T + 1))
    assert (effects.duplicates, position(effects).applied, position(effects).watermark_ms) == (0, 2, T + 1)
    assert (ever(state)["events_dialed"], ever(state)["leads_dialed"]) == (2, 1)


def test_a_later_event_moves_the_lead_by_the_difference(partition):
    state = partition()
    apply(state, event(LeadCreated, campaign="spring", source="web"))
    key = ("all", 0, "campaign+source", "spring", "web")
    assert state.tables.rows()[key] == {
        "events_created": 1,
        "leads_created": 1,
        "awaited": 1,
        "uncalled": 1,
    }
    apply(state, event(Dial, "d", at_ms=T + 30_000))
    assert state.tables.rows()[key] == {
        **{"events_created": 1, "leads_created": 1, "leads_dialed": 1},
        **{"awaited": 1, "attempt_30": 1, "attempt_ms": 30_000},
    }
    assert state.tables.rows()["all", 0, "campaign+source", "none", "none"] == {"events_dialed": 1}


def test_a_machines_answer_is_counted_apart(partition):
    state = partition()
    apply(state, event(Connect, answered_by="machine"))
    assert ever(state) == {"machine_answers": 1}


def test_an_event_is_late_when_its_record_is_younger_by_more_than_the_limit(partition):
    state = partition()
    assert apply(state, event(event_id="a"), appended_ms=T + 600_000).late == 0
    assert apply(state, event(event_id="b"), appended_ms=T + 600_001).late == 1
    assert ever(state)["events_dialed"] == 2


# What is not applied


def test_a_record_that_is_no_event_is_rejected_and_the_others_count(partition):
    state = partition()
    effects = apply(state, event(event_id="a"), b"{", None, event(event_id="b"))
    assert [(i, why.reason) for i, why in effects.rejected] == [(1, "not_json"), (2, "not_json")]
    assert ever(state)["events_dialed"] == 2


@pytest.mark.parametrize("partitioner", ["murmur2", "crc32"])
def test_an_event_counts_at_its_leads_home_and_is_sent_there_from_everywhere_else(partition, partitioner):
    leads = [lead_of(number, 8, partitioner) for number in range(8)]
    for number in range(8):
        state = partition(number, 8, replace(FOLD, partitioner=partitioner))
        effects = apply(state, *(event(lead_id=lead) for lead in leads))
        assert effects.foreign == [(other, other) for other in range(8) if other != number]
        assert list(state.tables.logs()) == [leads[number].encode()]
        assert (ever(state)["events_dialed"], position(effects).rerouted) == (1, 7)


def test_a_lead_is_at_home_elsewhere_under_another_number_of_partitions(partition):
    lead = lead_of(2)
    elsewhere = home(lead.encode(), 10, "murmur2")
    assert elsewhere != 2
    assert apply(partition(2, 8), event(lead_id=lead)).foreign == []
    assert apply(partition(2, 10), event(lead_id=lead)).foreign == [(0, elsewhere)]


def test_what_is_stuck_counts_at_home_and_is_refused_away_from_it(partition):
    state = partition(0, 8)
    here, there = lead_of(0), lead_of(5)
    effects = apply(
        state, event(lead_id=there), event(lead_id=here), b"{", event(lead_id=there), stuck=[1, 2, 3]
    )
    assert effects.foreign == [(0, 5)]
    assert [(i, why.reason) for i, why in effects.rejected] == [(2, "not_json"), (3, "misrouted")]
    assert list(state.tables.logs()) == [here.encode()]
    assert (position(effects).applied, position(effects).rejected, position(effects).rerouted) == (1, 2, 1)


def test_a_trusted_publishers_events_count_where_they_were_published(partition):
    state = partition(0, 8, replace(FOLD, partitioner="trust"))
    effects = apply(state, event(lead_id=lead_of(5)), event(lead_id=lead_of(2)), b"{", stuck=[1, 2])
    assert effects.foreign == []
    assert [(i, why.reason) for i, why in effects.rejected] == [(1, "misrouted"), (2, "not_json")]
    assert list(state.tables.logs()) == [lead_of(5).encode()]


def test_neither_rejected_nor_foreign_events_move_the_watermark(partition):
    state = partition(0, 8)
    here = lead_of(0)
    future = event(lead_id=here, at_ms=T + 300_001)
    effects = apply(state, event(lead_id=here), event(lead_id=lead_of(2), at_ms=T + 1000), future)
    assert [why.reason for _, why in effects.rejected] == ["from_the_future"]
    assert position(effects).watermark_ms == T


def test_a_crowded_lead_takes_no_more_events_but_knows_its_own(partition):
    state = partition()
    assert apply(state, *(event(event_id=f"e{n}") for n in range(3))).rejected == []
    effects = apply(state, event(event_id="e0"), event(event_id="e3"), event(lead_id="other"))
    assert effects.duplicates == 1
    ((index, why),) = effects.rejected
    assert index == 1
    assert why.reason == "crowded_lead"
    assert why.detail.startswith("`$.lead_id` names a lead that has 3 events already")
    assert ever(state)["events_dialed"] == 4


# What is left behind


DAY = 86_400_000
NOON = 1_749_988_800_000


def sent(state, *events):
    """Fold events as a batch of records that say nothing of their own time."""
    return apply(state, *events, appended_ms=-1)


def reasons(effects):
    return [(i, why.reason) for i, why in effects.rejected]


def ages(state, at_ms=NOON):
    """By lead id, the age in days of the newest event."""
    return {lead: (at_ms - unpack(log)[-1].at_ms) // DAY for lead, log in state.tables.logs().items()}


@pytest.mark.parametrize(("days", "is_old"), [(400, False), (401, True)])
def test_what_happened_on_a_day_that_is_not_kept_is_refused_whatever_came_before(partition, days, is_old):
    state = partition()
    sent(state, event(at_ms=NOON))
    effects = sent(state, event(lead_id="old", at_ms=NOON - days * DAY))
    assert reasons(effects) == ([(0, "archived")] if is_old else [])
    assert effects.rejected[:1] == ([(0, archived(NOON - DAY // 2 - 400 * DAY))] if is_old else [])


def test_an_event_is_judged_by_those_before_it_and_not_by_its_batch(partition):
    old, now = event(lead_id="old", at_ms=NOON - 500 * DAY), event(at_ms=NOON)
    state = partition()
    assert reasons(sent(state, old, old, now, old, now, old)) == [(3, "archived"), (5, "archived")]
    assert position(sent(state, now)).duplicates == 3


def test_a_copy_of_an_archived_event_is_no_event(partition):
    state = partition()
    old = event(LeadCreated, lead_id="old", at_ms=NOON - 500 * DAY)
    sent(state, old)
    sent(state, event(at_ms=NOON))
    assert ages(state) == {b"l": 0}
    assert reasons(sent(state, old)) == [(0, "archived")]
    ((key, columns),) = state.base.rows().items()
    assert key == ("base", 0, "campaign+source", "none", "none")
    assert columns == {"events_created": 1, "leads_created": 1, "awaited": 1, "uncalled": 1}


def test_a_lead_that_comes_back_after_it_was_archived_is_another_lead(partition):
    state = partition()
    created = event(LeadCreated, event_id="c", at_ms=NOON - 500 * DAY)
    sent(state, created)
    sent(state, event(lead_id="other", at_ms=NOON), event(event_id="back", at_ms=NOON))
    of_all_time = state.tables.rows()["all", 0, "campaign+source", "none", "none"]
    assert (of_all_time["leads_created"], of_all_time["implied"]) == (2, 2)  # by their dials alone
    (columns,) = state.base.rows().values()
    assert columns["leads_created"] == 1


def test_leads_that_still_have_events_keep_what_is_older(partition):
    state = partition()
    sent(state, event(LeadCreated, event_id="c", at_ms=NOON - 500 * DAY))
    sent(state, event(event_id="d", at_ms=NOON - 200 * DAY), event(lead_id="other", at_ms=NOON))
    assert ages(state) == {b"l": 200, b"other": 0}
    assert len(unpack(state.tables.logs()[b"l"])) == 2


def test_a_replay_of_history_forgets_nothing(replay):
    state = replay()
    sent(state, event(lead_id="old", at_ms=NOON - 900 * DAY), event(at_ms=NOON))
    effects = sent(state, event(lead_id="older", at_ms=NOON - 1_000 * DAY))
    assert (reasons(effects), position(effects).horizon_ms) == ([], 0)
    assert ages(state).keys() == {b"old", b"l", b"older"}


def test_days_that_were_archived_do_not_come_back_under_a_longer_retention(partition):
    shorter = replace(FOLD, resolutions=resolutions(day_days=400))
    longer = replace(FOLD, resolutions=resolutions(day_days=900))
    state = partition(fold=shorter)
    first = sent(state, event(LeadCreated, event_id="c", at_ms=NOON - 500 * DAY))
    held = changelogs(first, sent(state, event(event_id="d", at_ms=NOON), event(lead_id="other", at_ms=NOON)))
    again = partition(fold=longer)
    restore(again, *held)
    while again.derive(10):
        pass
    days = {key[1] for key in again.tables.rows() if key[0] == "1d"}
    assert days == {(NOON - DAY // 2) // 1000}
    assert again.written.horizon_ms == state.written.horizon_ms


def test_a_shorter_memory_holds_from_the_first_record_on_however_records_are_cut(partition):
    shorter = replace(FOLD, event_days=5, resolutions=resolutions(day_days=3))
    held = changelogs(sent(partition(), event(at_ms=NOON)))
    for cuts in ([0, 2], [0, 1, 2]):
        state = partition(fold=shorter)
        restore(state, *held)
        while state.derive(10):
            pass
        state.turn()
        old = [event(lead_id=lead, at_ms=NOON - 28 * DAY) for lead in "ab"]
        found = [reasons(sent(state, *old[start:end])) for start, end in pairwise(cuts)]
        assert [why for part in found for _, why in part] == ["archived", "archived"]


def test_for_how_long_events_are_known_is_a_setting_of_the_fold(partition):
    longer = replace(FOLD, event_days=401)
    assert longer.id != FOLD.id
    state = partition(fold=longer)
    restore(state, *changelogs(apply(partition(), event())))
    assert state.is_of_another_fold
    assert state.change == "events known for 400 d to events known for 401 d"


def test_a_talk_is_rounded_down_as_its_number_is_written(partition):
    """Of a product of floats, one of 160 durations with two decimals would be a millisecond short."""
    talks = [f"{n // 100}.{n % 100:02}" for n in (*range(6_000), 1_440_000, 99_999_999)]
    ended = (
        b'{"type":"call_ended","event_id":"e","occurred_at":1750000020000,"lead_id":"%s","talk_seconds":%s}'
    )
    state = partition()
    apply(state, *(ended % (talk.encode(), talk.encode()) for talk in talks))
    assert {lead: unpack(log)[0].own[0] for lead, log in state.tables.logs().items()} == {
        talk.encode(): int(talk.replace(".", "")) * 10 for talk in talks
    }


def test_the_position_accounts_for_every_record(partition):
    state = partition(0, 8)
    here = lead_of(0)
    first = apply(state, *[event(lead_id=here)] * 2, b"", event(lead_id=lead_of(2)), end=44)
    expected = {"offset": 44, "watermark_ms": T, "fold": FOLD.id, "applied": 1, "partitions": 8}
    assert first.funnel[-1][0] == POSITION_KEY
    assert first.leads[-1] == (LEADS_POSITION_KEY, first.funnel[-1][1])
    assert position(first) == state.written
    counts = {"duplicates": 1, "rejected": 1, "rerouted": 1}
    assert {name: getattr(position(first), name) for name in expected | counts} == expected | counts
    again, another = event(lead_id=here), event(lead_id=here, event_id="f", at_ms=T - 9)
    second = position(apply(state, another, again, b"", end=99))
    assert (second.offset, second.watermark_ms) == (99, T)
    assert (second.applied, second.duplicates, second.rejected, second.rerouted) == (2, 2, 2, 1)
    assert state.offset == 99


def test_a_new_partition_has_no_offset(partition):
    assert partition().offset is None


def test_the_rows_of_an_expired_pane_become_tombstones(partition):
    state = partition()
    apply(state, event())
    effects = apply(
        state, event(event_id="f", lead_id="m", at_ms=T + 7 * 3_600_000), appended_ms=T + 7 * 3_600_000
    )
    gone = [key for key, value in effects.funnel if value is None]
    minute = T // 60_000 * 60
    assert sorted(map(decode_key, gone)) == [
        ("1m", minute, "campaign+source", "none", "none"),
        ("1m", minute, "location", "none"),
        ("1m", minute, "team+agent", "none", "none"),
    ]


def test_the_position_names_where_days_begin_and_how_long_they_are_kept(partition):
    fold = replace(FOLD, timezone="Europe/Berlin", resolutions=resolutions(day_days=30))
    written = position(apply(partition(fold=fold), event()))
    assert (written.timezone, written.days_kept) == ("Europe/Berlin", 30)


def test_the_witness_is_kept_until_there_is_another(partition):
    state = partition()
    first, second = (Witness.of(offset, T, b"l", b"value") for offset in (4, 20))
    taken = state.apply([encode(event())], [b"l"], [T], 5, witness=first)
    assert position(taken).witness == first
    assert position(apply(state, event(event_id="f"))).witness == first
    state.apply([encode(event(event_id="g"))], [b"l"], [T], 30, witness=second)
    assert state.written.witness == second


def test_without_records_only_the_position_is_written_and_its_witness_stays(partition):
    state, witness = partition(), Witness.of(0, T, None, encode(event()))
    state.apply([encode(event())], [None], [T], 1, witness=witness)
    state.made_from("call-events", "id")
    effects = state.apply([], [], [], 44)
    expected = replace(state.written, offset=44, topic="call-events", topic_id="id")
    assert [key for key, _ in effects.funnel] == [POSITION_KEY]
    assert [key for key, _ in effects.leads] == [LEADS_POSITION_KEY]
    assert position(effects) == state.written == expected
    assert (expected.witness, expected.applied) == (witness, 1)


# The bound of a replay


@pytest.fixture
def replay(tables):
    """A partition of a replay that is begun at T, with or without a bound of its own."""
    return lambda until_ms=None, begun_ms=T: Partition(
        0, 1, FOLD, Decoder(Limits(clock="event", until_ms=until_ms)), tables, begun_ms
    )


def refused(effects):
    return [why.reason for _, why in effects.rejected]


@pytest.mark.parametrize("until_ms", [None, T - 1, T + 5])
def test_a_replay_takes_events_up_to_its_bound_or_the_time_when_it_was_begun(replay, until_ms):
    state, bound = replay(until_ms), T if until_ms is None else until_ms
    effects = apply(state, event(at_ms=bound), event(event_id="f", at_ms=bound + 1), appended_ms=T + 9)
    assert refused(effects) == ["from_the_future"]
    assert position(effects).replay_until_ms == bound
    assert position(effects).watermark_ms == bound


def test_a_replay_keeps_its_bound_for_good(replay):
    held = changelogs(apply(replay(), event()))
    later = replay(begun_ms=T + 1_000)
    restore(later, *held)
    assert later.is_bounded
    assert refused(apply(later, event(event_id="f", at_ms=T + 1))) == ["from_the_future"]
    assert later.written.replay_until_ms == T


def test_a_setting_that_contradicts_the_bound_is_refused_and_the_same_one_is_not(replay):
    def held():
        return changelogs(apply(replay(), event()))

    why = refusal(replay(until_ms=T + 1), *held())
    assert "CALLFUNNEL_REPLAY_UNTIL says 2025-06-15T15:07:00.001Z" in why
    assert "Set CALLFUNNEL_REPLAY_UNTIL to 2025-06-15T15:07:00.000Z or unset it" in why
    restore(replay(until_ms=T), *held())


def test_a_replay_of_before_there_were_bounds_goes_on_without_one_until_it_is_given_one(replay):
    old = Position(offset=4, watermark_ms=T, fold=FOLD.id)
    funnel, leads = {POSITION_KEY: encode_position(old)}, {LEADS_POSITION_KEY: encode_position(old)}
    state = replay()
    restore(state, funnel, leads)
    assert not state.is_bounded
    assert refused(apply(state, event(at_ms=T + 10**9))) == []
    given = replay(until_ms=T)
    restore(given, funnel, leads)
    assert given.is_bounded
    assert refused(apply(given, event(at_ms=T + 1))) == ["from_the_future"]
    assert given.written.replay_until_ms == T


def test_a_live_floor_has_no_bound_and_keeps_that_of_a_replay_before_it(partition, replay):
    live = partition()
    apply(live, event())
    assert live.is_bounded
    assert live.written.replay_until_ms is None
    restore(live, *changelogs(apply(replay(), event())))
    assert refused(apply(live, event(event_id="f", at_ms=T + 1))) == []
    assert live.written.replay_until_ms == T


# Taking over


def test_restored_tables_are_the_state_that_wrote_them(partition):
    before, after = partition(), partition()
    effects = apply(before, event(LeadCreated), b"", end=10), apply(before, event(Dial, "d"), end=20)
    restore(after, *changelogs(*effects))
    assert (after.offset, after.written, after.tables.logs()) == (20, before.written, before.tables.logs())
    assert after.tables.rows() == before.tables.rows()
    assert apply(after, event(Dial, "d")).duplicates == 1


def test_nothing_to_restore_is_a_new_partition(partition):
    state = partition()
    restore(state, {}, {})
    assert state.offset is None
    assert state.written.watermark_ms == -1


def refusal(state, funnel, leads, remedy="count-anew"):
    with pytest.raises(Mismatch) as refused:
        restore(state, funnel, leads)
    assert refused.value.remedy == remedy
    return str(refused.value)


@pytest.mark.parametrize("lost", ["funnel", "leads"])
def test_half_of_the_tables_is_refused(partition, lost):
    funnel, leads = changelogs(apply(partition(), event()))
    (funnel if lost == "funnel" else leads).clear()
    assert "do not belong together" in refusal(partition(), funnel, leads, "rebuild")


def test_halves_of_different_moments_are_refused(partition):
    state = partition()
    earlier = apply(state, event())
    later = apply(state, event(event_id="f"))
    funnel, _ = changelogs(earlier)
    _, leads = changelogs(earlier, later)
    assert "do not belong together" in refusal(partition(), funnel, leads, "rebuild")


@pytest.mark.parametrize("rows", [({b'["all",0,"location","Ulm"]': b"{}"}, {}), ({}, {b"lead": b""})])
def test_rows_without_a_position_are_refused(partition, rows):
    assert "hold rows but no position" in refusal(partition(), *rows)


OTHERS = (
    {"hangup_ms": 10_000},
    {"lead_events": 4},
    {"timezone": "Europe/Berlin"},
    {"resolutions": resolutions(minute_hours=1)},
    {"version": FOLD.version + 1},
)


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_the_rows_of_another_fold_have_to_be_derived_anew(partition, other):
    state = partition(fold=replace(FOLD, **other))
    restore(state, *changelogs(apply(partition(), event())))
    assert state.is_of_another_fold
    assert len(state.change.split(" to ")) == 2


def test_tables_made_with_another_partitioner_are_refused(partition):
    held = changelogs(apply(partition(), event()))
    told = refusal(partition(fold=replace(FOLD, partitioner="crc32")), *held)
    assert "made with the partitioner murmur2, and CALLFUNNEL_PARTITIONER says crc32" in told


def test_tables_of_a_version_without_logs_are_refused(partition):
    funnel, leads = changelogs(apply(partition(), event()))
    of_before = encode_position(Position(offset=1, watermark_ms=T, fold="of version 2", partitions=1))
    told = refusal(partition(), funnel | {POSITION_KEY: of_before}, leads | {LEADS_POSITION_KEY: of_before})
    assert "kept no logs of leads" in told


def derived(state, *held):
    """What a worker writes that takes over tables of another fold."""
    restore(state, *held)
    while state.derive(1):
        pass
    return [*state.derived(2), state.turn(), *iter(lambda: state.sweep(2), None)]


def test_no_two_transactions_of_a_derivation_have_the_same_position(partition):
    """A worker that takes over tells by the position whether the other changelog has the transaction."""
    held = changelogs(apply(partition(), event(), event(lead_id="m", at_ms=T + 3_600_000)))
    state = partition(fold=replace(FOLD, hangup_ms=1))
    restore(state, *held)
    while state.derive(1):
        pass
    parts = [*state.derived(1), state.turn()]
    while (part := state.sweep(1)) is not None:
        parts.append(part)
    positions = [dict(part.leads)[LEADS_POSITION_KEY] for part in parts]
    assert len(positions) > 5
    assert len(set(positions)) == len(positions)


def test_nobody_derives_back_to_a_fold_that_was_replaced_unless_it_is_meant(partition):
    other = replace(FOLD, hangup_ms=10_000)
    before = apply(partition(), event())
    after = derived(partition(fold=other), *changelogs(before))
    told = refusal(partition(), *changelogs(before, *after), remedy="fold-adopt")
    assert "have been derived anew with others since" in told
    assert "Now they are hang-up threshold 10000 ms, time zone UTC" in told
    assert position(after[-1]).replaced == (FOLD.id,)
    again = derived(partition(fold=replace(FOLD, hangup_ms=9_000)), *changelogs(before, *after))
    assert position(again[-1]).replaced == (FOLD.id, other.id)
    assert position(again[-1]).generation == 2


def test_tables_of_a_source_with_another_number_of_partitions_are_refused(partition):
    held = changelogs(apply(partition(0, 8), event(lead_id=lead_of(0))))
    told = refusal(partition(0, 10), *held)
    assert "made of a source with 8 partitions, and it has 10" in told


def test_the_same_settings_are_the_same_fold():
    assert replace(FOLD).id == FOLD.id
    assert len(FOLD.id) == 16
