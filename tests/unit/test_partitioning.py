import zlib

import pytest
from aiokafka.partitioner import murmur2 as murmur2_of_aiokafka
from hypothesis import given
from hypothesis import strategies as st
from kafka.partitioner.default import murmur2 as murmur2_of_kafka_python

from callfunnel.streams.partitioning import home, homes, murmur2


@pytest.mark.parametrize(
    ("key", "signed"),
    [  # of the Java client's own tests
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_is_that_of_the_java_client(key, signed):
    assert murmur2(key) == signed & 0x7FFFFFFF


@given(st.binary(max_size=70))
def test_murmur2_agrees_with_the_python_clients(key):
    assert murmur2(key) == murmur2_of_aiokafka(key) & 0x7FFFFFFF
    assert murmur2(key) == murmur2_of_kafka_python(key) & 0x7FFFFFFF


@given(st.sets(st.binary(max_size=20)))
def test_murmur2_of_many_keys_is_that_of_each(tables, keys):
    assert tables.murmur2_of_all(keys) == {key: murmur2(key) for key in keys}


@given(st.binary(max_size=70), st.integers(1, 100))
def test_a_home_is_the_digest_modulo_the_partitions(key, partitions):
    assert home(key, partitions, "murmur2") == murmur2(key) % partitions
    assert home(key, partitions, "crc32") == zlib.crc32(key) % partitions


def test_the_home_of_a_lead_is_the_settings_choice():
    keys = [b"lead-1", b"lead-2", b"another"]
    for partitioner in ("murmur2", "crc32"):
        assert homes(6, partitioner)(keys) == {key: home(key, 6, partitioner) for key in keys}


def test_trusted_publishers_need_no_home():
    assert homes(6, "trust") is None
