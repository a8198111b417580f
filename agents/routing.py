"""Which partition is a key's home: clients of different languages disagree, and a lead must have one.

Java, kafka-python, aiokafka and kafkajs hash keys with murmur2; librdkafka's default is CRC32.
"""

import zlib

from kafka.partitioner.default import murmur2


def home(key: bytes, partitions: int, partitioner: str) -> int:
    """The partition that `partitioner` ("murmur2" or "crc32") gives a record with this key."""
    digest = zlib.crc32(key) if partitioner == "crc32" else murmur2(key) & 0x7FFFFFFF
    return digest % partitions
