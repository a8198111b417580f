import pytest

from callfunnel.streams.rows import (
    LEADS_POSITION_KEY,
    POSITION_KEY,
    Position,
    Witness,
    decode_columns,
    decode_key,
    decode_position,
    encode_columns,
    encode_key,
    encode_position,
)

KEY = ("1h", 1_717_171_200, "campaign+source", "spring", "web")


def test_a_key_is_an_array_of_msgpack():
    data = b"\x96\x00\x00\x01\xcefY\xf4\x00\xa6spring\xa3web"
    assert encode_key(KEY) == data
    assert decode_key(data) == KEY


def test_a_key_survives_quotes_and_scripts_and_days_before_1970():
    for pane in (0, -50_400):
        key = ("1d", pane, "location", 'K"öln \\ 東京')
        assert decode_key(encode_key(key)) == key


def test_columns_are_a_map_of_ids_in_their_order():
    columns = {"attempt_ms": 2**40, "events_dialed": 7, "events_won": 300}
    assert encode_columns(columns) == b"\x83\x01\x07\x05\xcd\x01\x2c\x15\xcf\x00\x00\x01\x00\x00\x00\x00\x00"
    assert decode_columns(encode_columns(columns)) == columns


def test_rows_in_json_are_read_they_are_of_former_versions():
    assert decode_key(b'["1h",1717171200,"campaign+source","spring","web"]') == KEY
    assert decode_columns(b'{"events_dialed":7}') == {"events_dialed": 7}


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b'{"a":"7"}', b'{"a":1.5}', b"[1]", b"\x81", b"\x81\xa1a\x07", b"\x81\x7f\x07", b"\x01"],
)
def test_what_is_no_row_is_refused(data):
    with pytest.raises(ValueError, match=r"\w"):
        decode_columns(data)


@pytest.mark.parametrize(
    "data", [b"", b"[", b"\x96\x00\x00\x01", b"\x95\x00\x09\x01\x00\xa1a", b"\x91\x00", b"\xff"]
)
def test_what_is_no_key_is_refused(data):
    with pytest.raises(ValueError, match=r"\w"):
        decode_key(data)


def test_a_position_says_how_far_the_rows_go():
    counts = {"applied": 5, "duplicates": 4, "rejected": 2, "rerouted": 1}
    more = {"partitions": 6, "lost": 3, "lost_at_ms": 56, "rejected_share": 0.25, "poison": "found"}
    position = Position(offset=12, watermark_ms=34, fold="f", **counts, **more)
    assert encode_position(position) == (
        b'{"offset":12,"watermark_ms":34,"fold":"f","applied":5,"duplicates":4,"rejected":2,"rerouted":1,'
        b'"partitions":6,"topic":"","topic_id":"","witness":null,"timezone":"","days_kept":0,'
        b'"replay_until_ms":null,"lost":3,"lost_at_ms":56,"rejected_share":0.25,"poison":"found",'
        b'"generation":0,"settings":null,"replaced":[],"parts":0,"horizon_ms":0,'
        b'"conflicting":0}'
    )
    assert decode_position(encode_position(position)) == position


def test_a_position_of_a_former_version_tells_less():
    position = decode_position(b'{"offset":1,"watermark_ms":-1,"fold":"f"}')
    assert (position.applied, position.partitions, position.lost, position.lost_at_ms) == (0, 0, 0, 0)


def test_a_position_written_before_its_source_was_kept_names_none():
    position = decode_position(
        b'{"offset":1,"watermark_ms":-1,"fold":"f","applied":5,"duplicates":4,"rejected":2,"rerouted":1}'
    )
    assert position == Position(1, -1, "f", 5, 4, 2, 1)
    assert (position.topic, position.topic_id, position.witness, position.timezone) == ("", "", None, "")
    assert (position.days_kept, position.replay_until_ms) == (0, None)


def test_a_witness_is_its_record_and_no_other():
    parts = (None, b"", b"a", b"ab", b"abc", b"1:a", b"null", b"\x00")
    crcs = [Witness.of(3, 5, key, value).crc for key in parts for value in parts]
    assert len(set(crcs)) == len(parts) ** 2
    assert Witness.of(3, 5, b"key", b"value") == Witness(
        offset=3, timestamp_ms=5, crc=Witness.of(0, 0, b"key", b"value").crc
    )


def test_the_position_keys_are_neither_rows_nor_leads():
    assert decode_key(POSITION_KEY) == ("position",)
    assert not LEADS_POSITION_KEY.decode().isprintable()  # as every lead id is
