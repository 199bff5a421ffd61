import gzip

import pytest

from rayferry.job.formats import HEAD_BYTES, by_name, compression_of, decide, is_openai_line

OPENAI = b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {}}\n'


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("b/a.txt", "text"),
        ("b/a.text", "text"),
        ("b/a.jsonl", "jsonl"),
        ("b/a.ndjson", "jsonl"),
        ("b/a.json", "json"),
        ("b/a.csv", "csv"),
        ("b/a.tsv", "tsv"),
        ("b/a.tab", "tsv"),
        ("b/a.parquet", "parquet"),
        ("b/a.pq", "parquet"),
        ("b/a.bin", "binary"),
        ("b/a.JPG", "binary"),
        ("b/A.CSV", "csv"),
        ("b/a.txt.gz", "text"),
        ("b/a.jsonl.ZST", "jsonl"),
        ("b.d/a.b.csv.bz2", "csv"),
        ("b/a.txt.lz4", "text"),
    ],
)
def test_the_suffix_tells_the_format(path, kind):
    assert by_name(path) == kind


@pytest.mark.parametrize("path", ["b/a", "b/a.gz", "b.txt/a", "b/a.pdf", "b/a.csv.zip", "b/.txt"])
def test_a_suffix_may_tell_nothing(path):
    assert by_name(path) is None


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"PAR1\x15\x04", "parquet"),
        (b"hello\n", "text"),
        ("größe\n".encode(), "text"),
        (b"", "text"),
        (b"\xef\xbb\xbfhello", "text"),
        (b"nul\0byte", "binary"),
        (b"\x89PNG\r\n", "binary"),
        ("größe".encode("utf-16"), "binary"),
        (b'{"text": "a"}\n{"text": "b"}\n', "jsonl"),
        (b'\xef\xbb\xbf \n{"text": "a"}', "jsonl"),
        (b'[\n{"text": "a"}\n]', "json"),
        (b'{"text":\n"a"}', "json"),
        (OPENAI, "openai"),
        (b'{"text": "cut', "jsonl"),
        (b"[draft] hello\nmore", "text"),
        (b"{{name}} is a prompt\nmore", "text"),
    ],
)
def test_the_content_tells_the_format_of_a_file_whose_suffix_does_not(head, kind):
    assert decide("b/a", head)[0] == kind


def test_a_character_cut_at_the_end_of_the_head_is_text():
    assert decide("b/a", ("x" * (HEAD_BYTES - 1) + "ü").encode()[:HEAD_BYTES])[0] == "text"


def test_a_character_cut_at_the_end_of_a_short_file_is_not_text():
    assert decide("b/a", "xü".encode()[:-1])[0] == "binary"


LINES = b'{"text": "a"}\n{"text": "b"}\n'


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (LINES, "jsonl"),
        (b'{"text":\n' + LINES, "jsonl"),
        (b"[broken\n" + LINES, "jsonl"),
        (b"[1]\n" + LINES, "jsonl"),
        (b"[" * 100_000 + b"\n" + LINES, "jsonl"),
        (b'{"text": "a",\n "n": 1}', "json"),
        (b'{\n "text": "a"}', "json"),
        (b'[{"text": "a"},\n{"text": "b"}]', "json"),
        (b'[\n{"text": "a"}\n]', "json"),
        (b'[{"text": "a"}]', "json"),
        (b"[]", "json"),
        (b'"a"', "json"),
        (b'[\n{"text": "a"},\n' + b'{"text": "a"},\n' * 5, "json"),
        (OPENAI, "openai"),
        (b'{"custom_id":\n' + OPENAI, "openai"),
    ],
    ids=lambda value: value[:30] if isinstance(value, bytes) else value,
)
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_json_is_one_document_or_lines_by_its_content(suffix, head, kind):
    assert decide(f"b/a.{suffix}", head)[0] == kind


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize("head", [b"", b" \n\n", b'{"text": "cut'])
def test_json_that_tells_nothing_is_what_its_suffix_says(suffix, head):
    assert decide(f"b/a.{suffix}", head) == (suffix, "")


@pytest.mark.parametrize("path", ["b/a.txt", "b/a.csv", "b/a.bin"])
def test_a_suffix_that_tells_is_believed_whatever_the_text_looks_like(path):
    assert decide(path, LINES) == (by_name(path), "")


@pytest.mark.parametrize(
    ("path", "head", "reason"),
    [
        ("b/a.csv", b"PAR1\x15\x04\xff", "it begins as Parquet does"),
        ("b/a.parquet", b"PAR1", ""),
        ("b/a.json", LINES, "it holds JSON lines"),
        ("b/a.jsonl", b"[\n]", "it holds one JSON document"),
        ("b/a.jsonl", OPENAI, "it holds OpenAI batch lines"),
        ("b/a", b"\0", "it is not text"),
        ("b/a", b"x", "it is text"),
        ("b/a", LINES, "it holds JSON lines"),
        ("b/a.txt", b"x", ""),
    ],
)
def test_the_reason_is_told_where_it_is_not_the_name_alone(path, head, reason):
    assert decide(path, head)[1] == reason


@pytest.mark.parametrize(
    ("path", "head", "codec"),
    [
        ("a.txt.gz", gzip.compress(b"x"), "gzip"),
        ("a.txt", gzip.compress(b"x"), "gzip"),
        ("a.txt.gz", b"plain text", None),
        ("a.txt.gz", b"\x01\x02\xff", "gzip"),
        ("a.txt.zst", b"\xff\xff", "zstd"),
        ("a.txt.gz", b"", None),
        ("a.txt", b"\xff\xff", None),
        ("a", b"\x28\xb5\x2f\xfd", "zstd"),
        ("a", b"\x04\x22\x4d\x18", "lz4"),
        ("a", b"BZh91AY&SY", "bz2"),
        ("a.txt", b"BZh is a prompt", None),
    ],
)
def test_the_first_bytes_tell_the_compression(path, head, codec):
    assert compression_of(path, head) == codec


@pytest.mark.parametrize(
    ("record", "is_one"),
    [
        ({"custom_id": "a", "url": "/v1/completions", "body": {}}, True),
        ({"custom_id": "a", "url": "https://a.page/", "body": {}}, False),
        ({"custom_id": "a", "url": "/v1/completions"}, False),
        ([], False),
        (None, False),
    ],
)
def test_an_openai_line_has_a_custom_id_a_url_and_a_body(record, is_one):
    assert is_openai_line(record) is is_one
