"""A lead's home partition: Kafka clients differ in what a key means, so the settings say it.

`murmur2` is the default of Java, kafka-python, aiokafka, kafkajs and franz-go, `crc32` that of librdkafka.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from struct import unpack, unpack_from
from zlib import crc32

Homes = Callable[[Collection[bytes]], Mapping[bytes, int]]
"""From lead ids to their home partitions."""

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


def murmur2_of_all(keys: Collection[bytes]) -> Mapping[bytes, int]:
    """The same of many keys at once, which takes a small part of the time.

    Keys of one length lie side by side in one large integer, each in a lane of 64 bits: a product of two
    32-bit numbers fits in it, so one multiplication multiplies every lane, and a mask ends the carries.
    """
    by_length: defaultdict[int, list[bytes]] = defaultdict(list)
    for key in keys:
        by_length[len(key)].append(key)
    digests: dict[bytes, int] = {}
    for length, alike in by_length.items():
        ones = int.from_bytes(b"\1\0\0\0\0\0\0\0" * len(alike), "little")
        mask = ones * _MASK
        h = ones * ((0x9747B28C ^ length) & _MASK)
        for at in range(0, length, 4):
            word = b"".join([key[at : at + 4].ljust(8, b"\0") for key in alike])
            k = int.from_bytes(word, "little")
            if at + 4 > length:
                h = (h ^ k) * _M & mask
            else:
                k = k * _M & mask
                h = (h * _M & mask) ^ ((k ^ k >> 24 & mask) * _M & mask)
        h = (h ^ h >> 13 & mask) * _M & mask
        h = (h ^ h >> 15 & mask) & ones * 0x7FFFFFFF
        digests |= zip(alike, unpack(f"<{len(alike)}Q", h.to_bytes(8 * len(alike), "little")), strict=True)
    return digests


_DIGESTS: dict[str, Callable[[bytes], int]] = {"murmur2": murmur2, "crc32": crc32}


def home(key: bytes, partitions: int, partitioner: str) -> int:
    """The partition that `partitioner` ("murmur2" or "crc32") gives a record with this key."""
    return _DIGESTS[partitioner](key) % partitions


def homes(partitions: int, partitioner: str, murmur2_of_all: Homes = murmur2_of_all) -> Homes | None:
    """The function from lead ids to their home partitions; None when the publishers are trusted (`trust`)."""
    if partitioner == "trust":
        return None
    if partitioner == "crc32":
        return lambda lead_ids: {lead_id: crc32(lead_id) % partitions for lead_id in lead_ids}
    return lambda lead_ids: {
        lead_id: digest % partitions for lead_id, digest in murmur2_of_all(lead_ids).items()
    }
