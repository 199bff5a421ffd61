import bz2
import gzip

import pyarrow as pa
import pytest

from rayferry.job.inflate import Inflated


def text(*rows):
    return [(position, {"text": value}) for position, value in rows]


@pytest.mark.parametrize("codec", ["gzip", "bz2", "zstd", "lz4"])
def test_a_compressed_file_is_read_whole(read_as, codec):
    stream = pa.BufferOutputStream()
    with pa.CompressedOutputStream(stream, codec) as out:
        out.write(b"line\n" * 60_000)
    found = read_as(Inflated(pa.BufferReader(stream.getvalue()), codec), "text")
    assert found == text(*((index, "line") for index in range(60_000)))


def test_a_gzip_file_of_two_members_is_read_whole(read_as):
    content = gzip.compress(b"one\n") + gzip.compress(b"two\n")
    assert read_as(Inflated(pa.BufferReader(content), "gzip"), "text") == text((0, "one"), (1, "two"))


CUT = gzip.compress(b"".join(b'{"text": "%064d"}\n' % number for number in range(9000)))[:-2000]


@pytest.mark.parametrize("format_", ["text", "jsonl", "csv"])
def test_what_comes_before_a_damage_is_read_and_the_damage_is_the_last_record(read_as, format_):
    rows = read_as(Inflated(pa.BufferReader(CUT), "gzip"), format_)
    good, (position, last) = rows[:-1], rows[-1]
    assert ([p for p, _ in good], last[0]) == (list(range(position)), "read")
    assert position > 1000


def test_a_line_that_breaks_off_is_no_good_record(read_as):
    *good, (_, last) = read_as(Inflated(pa.BufferReader(CUT), "gzip"), "text")
    assert ({len(record["text"]) for _, record in good}, last[0]) == ({76}, "read")


@pytest.mark.parametrize("format_", ["json", "binary"])
def test_a_damaged_file_that_is_one_document_is_one_failure(read_as, format_):
    assert [record[0] for _, record in read_as(Inflated(pa.BufferReader(CUT), "gzip"), format_)] == ["read"]


@pytest.mark.parametrize("format_", ["text", "jsonl", "csv", "json", "binary"])
def test_what_only_calls_itself_compressed_is_one_failure(read_as, format_):
    found = read_as(Inflated(pa.BufferReader(bz2.compress(b"text\n")), "gzip"), format_)
    assert [(position, record[0]) for position, record in found] == [(0, "read")]
