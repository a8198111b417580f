"""A lead's home partition: Kafka clients differ in what a key means, so the settings say it.

`murmur2` is the default of Java, kafka-python, aiokafka, kafkajs and franz-go, `crc32` that of librdkafka.
"""

from collections.abc import Callable
from struct import unpack_from
from zlib import crc32

_M = 0x5BD1E995
_MASK = 0xFFFFFFFF


def murmur2(key: bytes) -> int:
    """Kafka's 32-bit murmur2 of a key, as the Java client computes it, with the sign bit cleared."""
    length = len(key)
    h = (0x9747B28C ^ length) & _MASK
    body = length & ~3
    for word in unpack_from(f"<{length // 4}I", key):
        k = word * _M & _MASK
        h = (h * _M ^ (k ^ k >> 24) * _M) & _MASK
    if length > body:
        h = (h ^ int.from_bytes(key[body:], "little")) * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return (h ^ h >> 15) & 0x7FFFFFFF


_DIGESTS: dict[str, Callable[[bytes], int]] = {"murmur2": murmur2, "crc32": crc32}


def home(key: bytes, partitions: int, partitioner: str) -> int:
    """The partition that `partitioner` ("murmur2" or "crc32") gives a record with this key."""
    return _DIGESTS[partitioner](key) % partitions


def homes(partitions: int, partitioner: str) -> Callable[[bytes], int] | None:
    """The function from a lead id to its home partition; None when the publishers are trusted (`trust`)."""
    return None if partitioner == "trust" else lambda lead_id: home(lead_id, partitions, partitioner)
