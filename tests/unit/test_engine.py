import pytest
from msgspec.json import encode
from msgspec.structs import replace

from schemas.codec import Decoder, Limits
from schemas.events import Connect, Dial, LeadCreated
from schemas.rows import LEADS_POSITION_KEY, POSITION_KEY, decode_position
from streams.engine import Mismatch, Partition
from streams.panes import resolutions
from streams.tables import Fold

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


def homes(lead_ids):
    """Leads whose name begins with a digit live there, all others on partition 0."""
    return {lead_id: int(lead_id[:1]) if lead_id[:1].isdigit() else 0 for lead_id in lead_ids}


@pytest.fixture
def partition(tables):
    return lambda number=0, fold=FOLD, homes=homes: Partition(number, fold, DECODER, homes, tables)


def event(cls=Dial, event_id="e", lead_id="l", at_ms=T, **fields):
    return cls(event_id=event_id, lead_id=lead_id, occurred_at=at_ms, **fields)


def apply(state, *events, appended_ms=T, rerouted=None, end=None):
    """Fold events, or bytes that are none, as one batch."""
    values = [one if isinstance(one, bytes | None) else encode(one) for one in events]
    keys, times = [None] * len(values), [appended_ms] * len(values)
    return state.apply(
        values, keys, times, rerouted, (state.offset or 0) + len(values) if end is None else end
    )


def position(effects):
    return decode_position(dict(effects.funnel)[POSITION_KEY])


def ever(state):
    """The columns of all days, whatever the place."""
    sums = {}
    for (resolution, _, rollup, *_), columns in state.tables.funnel.rows().items():
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
    effects = apply(state, event(at_ms=T + 1))
    assert [key for key, _ in effects.funnel] == [POSITION_KEY]
    assert [key for key, _ in effects.leads] == [LEADS_POSITION_KEY]
    assert position(effects).watermark_ms == T


def test_a_later_event_moves_the_lead_by_the_difference(partition):
    state = partition()
    apply(state, event(LeadCreated, campaign="spring", source="web"))
    key = ("all", 0, "campaign+source", "spring", "web")
    assert state.tables.funnel.rows()[key] == {
        "events_created": 1,
        "leads_created": 1,
        "awaited": 1,
        "uncalled": 1,
    }
    apply(state, event(Dial, "d", at_ms=T + 30_000))
    assert state.tables.funnel.rows()[key] == {
        **{"events_created": 1, "leads_created": 1, "leads_dialed": 1},
        **{"awaited": 1, "attempt_30": 1, "attempt_ms": 30_000},
    }
    assert state.tables.funnel.rows()["all", 0, "campaign+source", "none", "none"] == {"events_dialed": 1}


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


def test_an_event_of_another_partitions_lead_is_sent_home(partition):
    state = partition()
    effects = apply(state, event(lead_id="l"), event(lead_id="2nd"), event(lead_id="5th"))
    assert effects.foreign == [(1, 2), (2, 5)]
    assert ever(state)["events_dialed"] == 1
    assert list(state.tables.leads) == [b"l"]


def test_an_event_that_was_sent_home_is_applied_wherever_it_is_found(partition):
    state = partition()
    effects = apply(state, event(lead_id="2nd"), event(lead_id="5th"), rerouted=[True, False])
    assert effects.foreign == [(1, 5)]
    assert list(state.tables.leads) == [b"2nd"]


def test_a_lead_that_is_here_stays_here(partition):
    state = partition()
    apply(state, event(lead_id="2nd"), rerouted=[True])
    assert apply(state, event(lead_id="2nd", event_id="f")).foreign == []


def test_trusted_publishers_are_believed(partition):
    state = partition(homes=None)
    assert apply(state, event(lead_id="2nd")).foreign == []
    assert ever(state)["events_dialed"] == 1


def test_neither_rejected_nor_foreign_events_move_the_watermark(partition):
    state = partition()
    future = event(lead_id="a", at_ms=T + 300_001)
    effects = apply(state, event(), event(lead_id="2nd", at_ms=T + 1000), future)
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


def test_the_position_accounts_for_every_record(partition):
    state = partition()
    first = apply(state, event(), event(), b"", event(lead_id="2nd"), end=44)
    expected = {"offset": 44, "watermark_ms": T, "fold": FOLD.id, "applied": 1}
    assert first.funnel[-1][0] == POSITION_KEY
    assert first.leads[-1] == (LEADS_POSITION_KEY, first.funnel[-1][1])
    assert position(first) == state.written
    counts = {"duplicates": 1, "rejected": 1, "rerouted": 1}
    assert {name: getattr(position(first), name) for name in expected | counts} == expected | counts
    second = position(apply(state, event(event_id="f", at_ms=T - 9), event(), b"", end=99))
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
    assert gone == [
        b'["1m",%d,"campaign+source","none","none"]' % minute,
        b'["1m",%d,"team+agent","none","none"]' % minute,
        b'["1m",%d,"location","none"]' % minute,
    ]


# Taking over


def test_restored_tables_are_the_state_that_wrote_them(partition):
    before, after = partition(), partition()
    effects = apply(before, event(LeadCreated), b"", end=10), apply(before, event(Dial, "d"), end=20)
    after.restore(*changelogs(*effects))
    assert (after.offset, after.written, after.tables.leads) == (20, before.written, before.tables.leads)
    assert after.tables.funnel.rows() == before.tables.funnel.rows()
    assert apply(after, event(Dial, "d")).duplicates == 1


def test_nothing_to_restore_is_a_new_partition(partition):
    state = partition()
    state.restore({}, {})
    assert state.offset is None
    assert state.written.watermark_ms == -1


def refusal(state, funnel, leads):
    with pytest.raises(Mismatch) as refused:
        state.restore(funnel, leads)
    return str(refused.value)


@pytest.mark.parametrize("lost", ["funnel", "leads"])
def test_half_of_the_tables_is_refused(partition, lost):
    funnel, leads = changelogs(apply(partition(), event()))
    (funnel if lost == "funnel" else leads).clear()
    assert "do not belong together" in refusal(partition(), funnel, leads)


def test_halves_of_different_moments_are_refused(partition):
    state = partition()
    earlier = apply(state, event())
    later = apply(state, event(event_id="f"))
    funnel, _ = changelogs(earlier)
    _, leads = changelogs(earlier, later)
    assert "do not belong together" in refusal(partition(), funnel, leads)


@pytest.mark.parametrize("rows", [({b'["all",0,"location","Ulm"]': b"{}"}, {}), ({}, {b"lead": b""})])
def test_rows_without_a_position_are_refused(partition, rows):
    assert "hold rows but no position" in refusal(partition(), *rows)


@pytest.mark.parametrize(
    "other",
    [
        {"hangup_ms": 10_000},
        {"lead_events": 4},
        {"timezone": "Europe/Berlin"},
        {"partitioner": "crc32"},
        {"resolutions": resolutions(minute_hours=1)},
        {"version": 1},
    ],
    ids=str,
)
def test_tables_made_by_another_fold_are_refused(partition, other):
    held = changelogs(apply(partition(), event()))
    assert "other settings of the fold" in refusal(partition(fold=replace(FOLD, **other)), *held)


def test_the_same_settings_are_the_same_fold():
    assert replace(FOLD).id == FOLD.id
    assert len(FOLD.id) == 16
