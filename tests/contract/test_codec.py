"""The gate: what is let in, what is refused and why, and that nothing makes it raise."""

import json
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callfunnel.schemas.codec import REASONS, Decoder, Limits, Rejected
from callfunnel.schemas.events import TYPES, CallEnded, Connect, Dial, Won
from callfunnel.schemas.money import minor_units
from contract.records import events, fields_of, mutated

NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)
NOON_MS = 1_740_830_400_000
DAY_MS = 86_400_000
WALL, HISTORY = Decoder(Limits()), Decoder(Limits(clock="event"))
DIAL = {"event_id": "e-1", "type": "dial", "occurred_at": "2025-03-01T12:00:00Z", "lead_id": "l-1"}


def verdict(event: object, key: bytes | None = None, timestamp_ms: int = NOON_MS, decoder: Decoder = WALL):
    value = event if isinstance(event, bytes) else json.dumps(event).encode()
    return decoder.decode(value, key, timestamp_ms)


def reason(*args, **kwargs) -> str:
    refused = verdict(*args, **kwargs)
    assert isinstance(refused, Rejected), refused
    return refused.reason


def test_an_event_becomes_its_type():
    assert verdict(DIAL | {"campaign": "spring"}) == Dial(
        event_id="e-1", occurred_at=NOON, lead_id="l-1", campaign="spring"
    )


@pytest.mark.parametrize("at", ["2025-03-01T12:00:00Z", "2025-03-01T17:30:00+05:30", NOON_MS])
def test_event_time_is_the_same_instant_however_it_is_written(at):
    assert verdict(DIAL | {"occurred_at": at}).at_ms == NOON_MS


def test_every_type_of_the_catalogue_is_decoded_to_its_own_class():
    needed = {
        "retracted": {"retracts_type": "won"},
        "touch": {"channel": "sms"},
        "revenue_adjusted": {"amount": "-1", "currency": "EUR"},
    }
    decoded = [type(verdict(DIAL | {"type": name} | needed.get(name, {}))) for name in TYPES]
    assert decoded == list(TYPES.values())


def test_null_or_an_empty_string_in_an_optional_field_means_missing():
    connect = DIAL | {"type": "connect"}
    for nothing in (None, ""):
        given = connect | dict.fromkeys(("campaign", "call_id", "answered_by", "schema_version"), nothing)
        assert verdict(given) == verdict(connect) == Connect(event_id="e-1", occurred_at=NOON, lead_id="l-1")


def test_an_empty_string_in_a_required_field_is_refused():
    assert reason(DIAL | {"lead_id": ""}) == "bad_value"


def test_unknown_fields_are_ignored_whatever_they_hold():
    assert verdict(DIAL | {"notes": ["{", {"a": [1, 2]}], "n": 10**400}) == verdict(DIAL)
    assert verdict(b'{"x":1e999,"y":"\\ud800",' + json.dumps(DIAL).encode()[1:]) == verdict(DIAL)


@pytest.mark.parametrize("version", [b"2", b"9" * 400])
def test_a_newer_version_is_refused_whatever_else_it_holds(version):
    assert reason(b'{"schema_version":%s,"type":["reshaped"]}' % version) == "unsupported_version"


def test_of_a_repeated_key_the_last_value_counts():
    text = json.dumps(DIAL).encode()[1:]
    assert verdict(b'{"lead_id":5,"type":"won",' + text) == verdict(DIAL)
    assert verdict(b'{"lead_id":"other",' + text) == verdict(DIAL)


def test_the_key_is_the_lead_in_bytes_or_absent():
    lead = DIAL | {"lead_id": "müller"}
    assert verdict(lead, key="müller".encode()) == verdict(lead, key=None)
    for key in (b"", b"l-1", b'"m\xc3\xbcller"', b"\xff"):
        assert reason(lead, key=key) == "key_mismatch"


@pytest.mark.parametrize(
    "character",
    ["\x00", "\n", "\x1f", "\x7f", "\x85", "\u061c", "\u200f", "\u2028", "\u202e", "\u2066", "\ud800"],
)
@pytest.mark.parametrize("field", ["event_id", "lead_id", "campaign", "call_id", "location"])
def test_a_control_character_is_refused_escaped_or_raw(field, character):
    event = DIAL | {field: f"a{character}b"}
    assert verdict(event).detail == f"`$.{field}` must not contain control character U+{ord(character):04X}"
    if character > "\x1f" and character != "\ud800":  # raw, JSON itself forbids those
        assert reason(json.dumps(event, ensure_ascii=False).encode()) == "bad_value"


def test_letters_of_every_script_are_welcome():
    for name in ("Zürich", "Москва", "東京", "मुंबई", "👍🏽", "x" * 64, "é" * 64, "non\u00a0breaking"):
        assert verdict(DIAL | {"location": name}).location == name
        assert verdict(json.dumps(DIAL | {"location": name}, ensure_ascii=False).encode()).location == name


def test_lengths_count_characters():
    assert verdict(DIAL | {"agent": "é" * 64}).agent == "é" * 64
    assert reason(DIAL | {"agent": "é" * 65}) == "bad_value"


QUICK, FULL = DIAL, DIAL | {"note": "an escape\n sends it through the full judgement"}


@pytest.mark.parametrize("event", [QUICK, FULL])
def test_an_event_may_be_five_minutes_ahead_of_its_record_and_400_days_behind(event):
    for shift_ms in (300_000, -400 * DAY_MS):
        assert verdict(event, timestamp_ms=NOON_MS - shift_ms) == verdict(DIAL)
    assert reason(event, timestamp_ms=NOON_MS - 300_001) == "from_the_future"
    assert reason(event, timestamp_ms=NOON_MS + 400 * DAY_MS + 1) == "too_old"


@pytest.mark.parametrize("event", [QUICK, FULL])
def test_without_a_record_time_or_in_a_replay_no_event_is_early_or_late(event):
    assert verdict(event, timestamp_ms=-1) == verdict(DIAL)
    for timestamp_ms in (0, NOON_MS + 10_000 * DAY_MS):
        assert verdict(event, timestamp_ms=timestamp_ms, decoder=HISTORY) == verdict(DIAL)


@pytest.mark.parametrize("event", [QUICK, FULL])
@pytest.mark.parametrize("timestamp_ms", [-1, 0, NOON_MS, NOON_MS + 10_000 * DAY_MS])
def test_a_replay_takes_events_up_to_its_bound_whatever_the_records_own_time(event, timestamp_ms):
    for until_ms in (NOON_MS, NOON_MS + DAY_MS):
        assert verdict(event, timestamp_ms=timestamp_ms, decoder=HISTORY.until(until_ms)) == verdict(DIAL)
    refused = verdict(event, timestamp_ms=timestamp_ms, decoder=HISTORY.until(NOON_MS - 1))
    assert refused == Rejected(
        "from_the_future",
        "`$.occurred_at` is after 2025-03-01T11:59:59.999Z, up to which this replay takes events "
        "(CALLFUNNEL_REPLAY_UNTIL): check the sender's clock; a later bound needs new tables",
    )


def test_the_bound_of_a_replay_counts_whole_milliseconds():
    at = "2025-03-01T12:00:00.000999Z"
    assert verdict(DIAL | {"occurred_at": at}, decoder=HISTORY.until(NOON_MS)).at_ms == NOON_MS


def test_a_live_floor_has_no_bound_but_the_records_own_time():
    assert verdict(DIAL, decoder=WALL.until(0)) == verdict(DIAL)


@pytest.mark.parametrize("until_ms", [-1, 0, 2**62])
def test_a_bound_may_be_any_number(until_ms):
    decoder = HISTORY.until(until_ms)
    assert decoder.decode(b"{}", None, 0).reason == "missing_field"
    assert (
        (reason(DIAL, decoder=decoder) == "from_the_future")
        if until_ms < NOON_MS
        else verdict(DIAL, decoder=decoder)
    )


@given(
    at_ms=st.lists(st.integers(NOON_MS - 3, NOON_MS + 3), min_size=1, max_size=5),
    until_ms=st.none() | st.integers(NOON_MS - 3, NOON_MS + 3),
    timestamp_ms=st.sampled_from((-1, NOON_MS)),
    full=st.booleans(),
)
def test_in_a_replay_an_event_is_in_time_by_itself_and_the_bound_alone(at_ms, until_ms, timestamp_ms, full):
    values = [json.dumps((FULL if full else QUICK) | {"occurred_at": ms}).encode() for ms in at_ms]
    nothing = [None] * len(values)
    verdicts = HISTORY.until(until_ms).decode_all(values, nothing, [timestamp_ms] * len(values))
    accepted = [not isinstance(verdict, Rejected) for verdict in verdicts]
    assert accepted == [until_ms is None or ms <= until_ms for ms in at_ms]


@pytest.mark.parametrize("decoder", [WALL, HISTORY])
@pytest.mark.parametrize(
    "at", ["1969-12-31T23:59:59Z", "2101-01-01T00:00:00Z", "0001-01-01T00:00:00+05:00", -1]
)
def test_years_outside_1970_to_2100_are_refused(at, decoder):
    assert reason(DIAL | {"occurred_at": at}, timestamp_ms=-1, decoder=decoder) == "bad_value"


@pytest.mark.parametrize("decoder", [WALL, HISTORY])
@pytest.mark.parametrize("event", [QUICK, FULL])
@pytest.mark.parametrize("at", [0, 1_741_000_000, 99_999_999_999])
def test_seconds_in_place_of_milliseconds_are_refused_with_the_hint(at, event, decoder):
    refused = verdict(event | {"occurred_at": at}, timestamp_ms=NOON_MS, decoder=decoder)
    assert refused.reason == "bad_value"
    assert refused.detail.endswith("and this integer is not: send milliseconds, not seconds")


@pytest.mark.parametrize("event", [QUICK, FULL])
@pytest.mark.parametrize("at", [100_000_000_000, "1970-01-01T00:00:00Z", "1973-03-03T09:46:39.999Z"])
def test_milliseconds_since_1973_and_times_of_the_1970s_as_text_are_times(at, event):
    assert verdict(event | {"occurred_at": at}, decoder=HISTORY).occurred_at is not None


def test_a_number_that_is_no_time_at_all_is_not_taken_for_seconds():
    for at in (-1, 10**18):
        assert "seconds, not" not in verdict(DIAL | {"occurred_at": at}).detail


def test_neighbours_in_a_batch_do_not_change_a_verdict():
    early, late = DIAL, DIAL | {"occurred_at": "2026-06-01T12:00:00Z"}
    records = [
        (json.dumps(early).encode(), None, NOON_MS),
        (json.dumps(late).encode(), None, NOON_MS),
        (json.dumps(late).encode(), None, NOON_MS + 457 * DAY_MS),
        (json.dumps(early).encode(), None, NOON_MS + 457 * DAY_MS),
        (None, None, -1),
    ]
    alone = [WALL.decode(*record) for record in records]
    assert WALL.decode_all(*zip(*records, strict=True)) == alone
    assert [getattr(v, "reason", "accepted") for v in alone] == [
        "accepted", "from_the_future", "accepted", "too_old", "not_json",
    ]  # fmt: skip


def test_the_first_reason_in_the_documented_order_is_given():
    event = DIAL | {
        "schema_version": 2,
        "type": "nope",
        "lead_id": 5,
        "campaign": "\x07",
        "occurred_at": None,
    }
    seen = []
    for cure in (
        {"schema_version": 1},
        {"type": "dial"},
        {"occurred_at": "1970-01-01T00:00:00Z"},
        {"lead_id": "l"},
        {"campaign": "c"},
    ):
        seen.append(reason(event, key=b"other"))
        event |= cure
    seen += [reason(event, key=b"other"), reason(event, key=b"l")]
    assert seen == [
        "unsupported_version", "unknown_type", "missing_field", "wrong_type", "bad_value", "key_mismatch",
        "too_old",
    ]  # fmt: skip
    assert seen == [known for known in REASONS if known in seen]


def test_a_nested_value_is_refused_at_the_same_depth_in_any_batch_and_any_caller():
    def nested(depth):
        return b'{"x":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"," + json.dumps(DIAL).encode()[1:]

    assert verdict(nested(8)) == verdict(DIAL)
    assert reason(nested(9)) == "too_deep"
    assert reason(b"[" * 60_000) == reason(b'{"a":' * 9000) == "too_deep"
    assert reason(b'"' + b"[" * 60_000 + b'"') == "not_an_object"
    objects = b'{"x":' + b'{"x":' * 8 + b"1" + b"}" * 8 + b"," + json.dumps(DIAL).encode()[1:]
    verdicts = WALL.decode_all([objects, *[b"1"] * 8], [None] * 9, [-1] * 9)
    assert [refused.reason for refused in verdicts] == ["too_deep", *["not_an_object"] * 8]


def test_details_say_what_is_wrong_and_what_would_be_right():
    del (without := dict(DIAL))["event_id"]
    assert [
        verdict(without).detail,
        verdict(DIAL | {"occurred_at": 1.5}).detail,
        verdict(DIAL | {"occurred_at": "2025-03-01T12:00:00"}).detail,
        verdict(DIAL | {"type": "dialled"}).detail.rpartition(" (")[2],
        verdict(DIAL | {"type": "won", "amount": 5}).detail,
        verdict(DIAL | {"occurred_at": NOON_MS // 1000}).detail,
        verdict(b"\0\0\0\0\7{}").detail,
        WALL.decode(None, b"l-1", NOON_MS).detail,
    ] == [
        "`$.event_id` must be a string of 1 to 128 characters, no control character, and is missing",
        "`$.occurred_at` must be an RFC 3339 time with an offset, like 2025-03-01T09:30:00Z, "
        "or whole Unix milliseconds, and is a number",
        "`$.occurred_at` must be an RFC 3339 time with an offset, like 2025-03-01T09:30:00Z, "
        "or whole Unix milliseconds, and this string is not",
        "did you mean dial?)",
        "`$.currency` must be an ISO 4217 code, like EUR, and is missing",
        "`$.occurred_at` must be an RFC 3339 time with an offset, like 2025-03-01T09:30:00Z, "
        "or whole Unix milliseconds, and this integer is not: send milliseconds, not seconds",
        "the value is a schema registry's binary format: publish plain JSON",
        "the record has no value (a tombstone): publish only events",
    ]


def test_no_detail_repeats_a_value_of_the_record():
    secret = "+49-170-5550199"
    values = [secret * 9, f"{secret}\x07", [secret], {secret: secret}]
    events = [DIAL | {field: value} for field in fields_of(Won) for value in values]
    events += [DIAL | {"type": "won", "amount": secret, "currency": secret}, secret, {secret: 1}]
    for event in events:
        refused = verdict(event, key=secret.encode())
        assert "555" not in refused.detail, refused


@pytest.mark.parametrize(
    ("amount", "currency", "minor"),
    [("19.90", "EUR", 1990), (19.9, "EUR", 1990), (0, "EUR", 0), (5, "JPY", 5), ("5.000", "JPY", 5),
     (1.234, "KWD", 1234), (1e15, "JPY", 10**15), ("90071992547409.91", "EUR", 2**53 - 1)],
)  # fmt: skip
def test_money_is_kept_exactly_in_minor_units(amount, currency, minor):
    assert minor_units(amount, currency) == minor
    won = verdict(DIAL | {"type": "won", "amount": amount, "currency": currency})
    assert minor_units(won.amount, won.currency) == minor


@pytest.mark.parametrize(
    ("amount", "currency"),
    [("19.999", "EUR"), (0.5, "JPY"), (-1, "EUR"), ("-1", "EUR"), ("1e3", "EUR"), ("1,50", "EUR"),
     (" 1", "EUR"), ("NaN", "EUR"), ("Infinity", "EUR"), ("١", "EUR"), ("1\n", "EUR"), (1e300, "EUR"),
     (10**30, "EUR"), ("90071992547409.92", "EUR"), (5, "eur"), (5, "XXX"), (5, "Euro")],
)  # fmt: skip
def test_money_that_would_not_be_exact_is_refused(amount, currency):
    for kind, field in (("won", "amount"), ("qualified", "expected_amount")):
        assert reason(DIAL | {"type": kind, field: amount, "currency": currency}) == "bad_value"


def test_an_amount_and_its_currency_go_together():
    won = DIAL | {"type": "won"}
    assert verdict(won) == Won(event_id="e-1", occurred_at=NOON, lead_id="l-1")
    assert reason(won | {"amount": 5}) == reason(won | {"currency": "EUR", "amount": None}) == "missing_field"
    with pytest.raises(ValueError, match="go together"):
        Won(event_id="e", occurred_at=0, lead_id="l", amount=5)


def test_talk_time_is_a_finite_number_of_seconds():
    ended = DIAL | {"type": "call_ended"}
    assert verdict(ended | {"talk_seconds": 90}) == CallEnded(
        event_id="e-1", occurred_at=NOON, lead_id="l-1", talk_seconds=90.0
    )
    text = json.dumps(ended).encode()[:-1]
    assert {reason(text + b',"talk_seconds":%s}' % bad) for bad in (b"-1", b"1e400", b"9" * 400)} == {
        "bad_value"
    }
    assert {reason(text + b',"talk_seconds":%s}' % bad) for bad in (b"NaN", b"Infinity")} == {"not_json"}


values = st.binary() | mutated() | st.none()


@settings(max_examples=500, deadline=None)
@given(
    value=values,
    key=st.none() | st.binary(max_size=8),
    timestamp_ms=st.sampled_from([-1, 0, NOON_MS, 2**63 - 1]),
)
def test_no_bytes_make_the_gate_raise(value, key, timestamp_ms):
    for decoder in (WALL, HISTORY):
        judged = decoder.decode(value, key, timestamp_ms)
        if isinstance(judged, Rejected):
            assert judged.reason in REASONS
            assert judged.detail
        else:
            assert judged.lead_id.encode() == (key if key is not None else judged.lead_id.encode())
            assert 0 <= judged.at_ms < 4_133_980_800_000
            assert json.loads(value)["lead_id"] == judged.lead_id


@settings(max_examples=500, deadline=None)
@given(value=mutated())
def test_the_quick_look_and_the_full_judgement_agree(value):
    """An unknown field that holds a nested escape sends the same event through the full judgement."""
    quick = HISTORY.decode(value, None, -1)
    if isinstance(quick, Rejected) and quick.reason in ("not_json", "not_an_object", "not_utf8", "too_deep"):
        return
    rest = value.strip()[1:]
    comma = b"" if rest.strip() == b"}" else b","
    assert HISTORY.decode(b'{"quick":["\\u0020"]' + comma + rest, None, -1) == quick


@settings(max_examples=100, deadline=None)
@given(
    records=st.lists(
        st.tuples(values, st.none() | st.just(b"l"), st.sampled_from([-1, 0, NOON_MS, 2**63 - 1])), max_size=6
    )
)
def test_a_batch_is_judged_like_its_records_one_by_one(records):
    values, keys, timestamps = ([record[column] for record in records] for column in range(3))
    assert WALL.decode_all(values, keys, timestamps) == [WALL.decode(*record) for record in records]


@settings(max_examples=200, deadline=None)
@given(event=events)
def test_whatever_is_accepted_survives_being_written_again(event):
    judged = verdict(json.dumps(event).encode(), decoder=HISTORY, timestamp_ms=-1)
    if not isinstance(judged, Rejected):
        assert verdict(msgspec.json.encode(judged), decoder=HISTORY, timestamp_ms=-1) == judged
