"""Compressed files, read as far as they are sound."""

from typing import Any

import pyarrow as pa

from rayferry.job.records import CHUNK_BYTES, is_store_failure

_PIECE_BYTES = 1 << 16


class Inflated:
    """A compressed file, decompressed; where it is damaged, all that comes before is read."""

    def __init__(self, f: Any, codec: str) -> None:
        self._f = f
        self._codec = codec
        self._stream = self._start()
        self._again: Any = None  # kept for as long as this: Arrow's streams close the file when they go
        self._num_read = 0
        self._error: Exception | None = None

    def read(self, num_bytes: int | None = None) -> bytes:
        """As a file's; a failure is raised by the first read that has nothing to give."""
        if num_bytes is None:
            return bytes(self._stream.read())
        pieces: list[bytes] = []
        while num_bytes > 0 and self._error is None:
            try:
                piece = self._stream.read(min(num_bytes, _PIECE_BYTES))
            except Exception as error:
                if is_store_failure(error):
                    raise
                self._error = error
                piece = self._before_failure()
            if not piece:
                break
            pieces.append(piece)
            num_bytes -= len(piece)
            self._num_read += len(piece)
        if self._error is not None and not pieces:
            raise self._error
        return b"".join(pieces)

    def _start(self) -> Any:
        # Arrow asks for 64 KiB at a time, which of a store would be a request each
        return pa.CompressedInputStream(pa.BufferedInputStream(self._f, CHUNK_BYTES), self._codec)

    def _before_failure(self) -> bytes:
        """What Arrow threw away, as the read that got it failed later on: the same again, byte by byte."""
        self._f.seek(0)
        self._again = self._start()
        found = bytearray()
        left = self._num_read
        try:
            while left:
                left -= len(self._again.read(min(left, _PIECE_BYTES)))
            while byte := self._again.read(1):
                found += byte
        except Exception as error:
            if is_store_failure(error):
                raise
        return bytes(found)
