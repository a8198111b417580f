"""Unpacks what publishers compressed, piece by piece: a few kilobytes may stand for gigabytes.

The law: no more is held than a piece and what the format itself looks back at. A size that a format declares
is checked before anything is allocated for it.
"""

import threading
import zlib
from collections.abc import Callable, Iterator
from struct import unpack_from

import cramjam
import zstandard
from lz4.frame import LZ4FrameDecompressor

PIECE_BYTES = 1 << 20
LARGEST_BYTES = 32 << 20
"""Of what can only be unpacked whole: a block of snappy, and zstd that looks back farther than most."""

_FEED_BYTES = 1 << 18
"""What a decompressor gets at a time: it copies what it has not used yet."""

_WINDOW_LOG = 23
"""How far zstd looks back up to level 19 (8 MiB), and what a decoder holds until it is at the end."""

_WINDOW_LOG_AT_MOST = 27
_LOOKS_BACK_FARTHER = "requires too much memory"
"""What zstd says of a frame with a larger window."""

_XERIAL = b"\x82SNAPPY\0\0\0\0\1\0\0\0\1"


class Unreadable(Exception):
    """The bytes are not what they should be; the message says how."""


class TooLarge(Unreadable):
    """The bytes unpack to more than can be held, and the format has no smaller pieces."""


ERRORS = (Unreadable, zlib.error, RuntimeError, zstandard.ZstdError, cramjam.DecompressionError)
"""What is raised by damaged bytes: that of lz4 has no name of its own."""


def unpack(codec: int, packed: memoryview) -> Iterator[bytes]:
    """This function gives what the bytes unpack to, in pieces; `codec` is a number of Kafka's record format.

    Asking for the next piece raises one of `ERRORS` where the bytes are damaged.
    """
    return _CODECS.get(codec, _unknown)(packed, _first(packed))


def whole(codec: int, packed: memoryview, most: int) -> bytes | None:
    """This function gives all that the bytes unpack to; None where that is more than `most`, or damaged."""
    held, size = [], 0
    try:
        if codec == _ZSTD and (unpacked := _zstd_frame(packed, most)) is not None:
            return unpacked
        for piece in unpack(codec, packed):
            size += len(piece)
            if size > most:
                return None
            held.append(piece)
    except ERRORS:
        return None
    return b"".join(held)


def _first(packed: memoryview) -> int:
    """The size of the first piece, which mostly is the only one."""
    return min(max(len(packed) * 8, 1 << 14), PIECE_BYTES)


def _unknown(packed: memoryview, size: int) -> Iterator[bytes]:
    raise Unreadable("its compression is not known")
    yield


def _gzip(packed: memoryview, size: int) -> Iterator[bytes]:
    member = None
    for at in range(0, len(packed), _FEED_BYTES):
        rest = bytes(packed[at : at + _FEED_BYTES])
        while rest := rest if member else rest.lstrip(b"\0"):  # zeros may fill the space between members
            member = member or zlib.decompressobj(wbits=31)
            piece = member.decompress(rest, size)
            while piece:
                yield piece
                size = PIECE_BYTES
                piece = b"" if member.unconsumed_tail or member.eof else member.decompress(b"", size)
            if member.eof:
                rest, member = member.unused_data, None
            else:
                rest = member.unconsumed_tail
    if member:
        raise Unreadable("gzip ends in the middle")


def _lz4(packed: memoryview, size: int) -> Iterator[bytes]:
    frame = LZ4FrameDecompressor()
    for at in range(0, len(packed), _FEED_BYTES):
        rest = bytes(packed[at : at + _FEED_BYTES])
        while not frame.eof and (piece := frame.decompress(rest, size)):
            yield piece
            rest, size = b"", PIECE_BYTES
    if not frame.eof:
        raise Unreadable("lz4 ends in the middle")


def _zstd(packed: memoryview, size: int) -> Iterator[bytes]:
    pieces = _zstd_pieces(_near(), packed, size)
    try:
        first = next(pieces, b"")
    except zstandard.ZstdError as error:
        if _LOOKS_BACK_FARTHER not in str(error):
            raise
    else:
        yield first
        yield from pieces
        return
    held, total = [], 0
    for piece in _zstd_pieces(_decompressor(_WINDOW_LOG_AT_MOST), packed, size):
        held.append(piece)
        total += len(piece)
        if total > LARGEST_BYTES:
            raise TooLarge(
                f"zstd that looks back more than {1 << _WINDOW_LOG} bytes unpacks to more than "
                f"{LARGEST_BYTES} bytes"
            )
    yield from held


def _zstd_frame(packed: memoryview, most: int) -> bytes | None:
    """What one frame unpacks to; None where it is more than `most`, or not one whole frame."""
    declared = zstandard.frame_content_size(packed)  # -1 where it does not say, 0 where others may follow
    if not declared or declared > most:
        return None
    try:  # a frame that does not say its size gets so much at most
        return _near().decompress(packed, max_output_size=_first(packed), allow_extra_data=False)
    except zstandard.ZstdError:
        return None


def _zstd_pieces(decompressor: zstandard.ZstdDecompressor, packed: memoryview, size: int) -> Iterator[bytes]:
    """Where it ends in the middle of a frame, so do the pieces: the records in them are then too few."""
    with decompressor.stream_reader(packed, read_across_frames=True) as reader:
        while piece := reader.read(size):
            yield piece
            size = PIECE_BYTES


def _decompressor(window_log: int) -> zstandard.ZstdDecompressor:
    return zstandard.ZstdDecompressor(max_window_size=1 << window_log)


_threads = threading.local()


def _near() -> zstandard.ZstdDecompressor:
    """The decompressor of this thread: to make one takes longer than to unpack a small batch.

    It asks the processor what it can do, and virtual machines are slow to answer for it.
    """
    try:
        return _threads.near  # type: ignore[no-any-return]
    except AttributeError:
        _threads.near = _decompressor(_WINDOW_LOG)
        return _threads.near  # type: ignore[no-any-return]


def _snappy(packed: memoryview, size: int) -> Iterator[bytes]:
    if packed[: len(_XERIAL)] != _XERIAL:
        yield _snappy_block(packed)
        return
    at = len(_XERIAL)
    while at < len(packed):
        length = unpack_from(">i", packed, at)[0] if at + 4 <= len(packed) else -1
        block = packed[at + 4 : at + 4 + length]
        if len(block) != length:
            raise Unreadable("snappy ends in the middle")
        yield _snappy_block(block)
        at += 4 + length


def _snappy_block(block: memoryview) -> bytes:
    declared = shift = 0
    for byte in block[:5]:
        declared |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    if declared > LARGEST_BYTES:
        raise TooLarge(
            f"a block of snappy declares {declared} bytes, and at most {LARGEST_BYTES} are unpacked"
        )
    return bytes(cramjam.snappy.decompress_raw(block))


_ZSTD = 4
_CODECS: dict[int, Callable[[memoryview, int], Iterator[bytes]]] = {
    1: _gzip,
    2: _snappy,
    3: _lz4,
    _ZSTD: _zstd,
}
