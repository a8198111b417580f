import msgspec
import pytest

from schemas.rows import (
    LEADS_POSITION_KEY,
    POSITION_KEY,
    Position,
    decode_columns,
    decode_key,
    decode_position,
    encode_columns,
    encode_key,
    encode_position,
)

KEY = ("1h", 1_717_171_200, "campaign+source", "spring", "web")


def test_a_key_is_a_json_array():
    data = b'["1h",1717171200,"campaign+source","spring","web"]'
    assert encode_key(KEY) == data
    assert decode_key(data) == KEY


def test_a_key_survives_quotes_and_scripts():
    key = ("all", 0, "location", 'K"öln \\ 東京')
    assert decode_key(encode_key(key)) == key


def test_columns_are_a_json_object_of_integers():
    assert encode_columns({"events_dialed": 7, "attempt_ms": 2**40}) == (
        b'{"events_dialed":7,"attempt_ms":1099511627776}'
    )
    assert decode_columns(b'{"events_dialed":7}') == {"events_dialed": 7}


@pytest.mark.parametrize("data", [b"", b"{", b'{"a":"7"}', b'{"a":1.5}', b"[1]"])
def test_what_is_no_row_is_refused(data):
    with pytest.raises(msgspec.DecodeError):
        decode_columns(data)


def test_a_position_says_how_far_the_rows_go():
    position = Position(
        *(12, 34, "f"), applied=5, duplicates=4, rejected=2, rerouted=1, rejected_share=0.25, poison="found"
    )
    assert encode_position(position) == (
        b'{"offset":12,"watermark_ms":34,"fold":"f","applied":5,"duplicates":4,"rejected":2,"rerouted":1,'
        b'"rejected_share":0.25,"poison":"found"}'
    )
    assert decode_position(encode_position(position)) == position


def test_a_position_without_counts_has_counted_nothing():
    assert decode_position(b'{"offset":1,"watermark_ms":-1,"fold":"f"}').applied == 0


def test_the_position_keys_are_neither_rows_nor_leads():
    assert decode_key(POSITION_KEY) == ("position",)
    assert not LEADS_POSITION_KEY.decode().isprintable()  # as every lead id is
