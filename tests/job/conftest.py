"""What the tests of the job share: the session's Ray head, job files, and the source's reading in this process."""

import copy
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from rayferry.job.answers import Answers
from rayferry.job.layout import Layout
from rayferry.job.look import look
from rayferry.job.progress import Board
from rayferry.job.readers import read_chunks
from rayferry.job.records import BadRecordError
from rayferry.job.rows import data_schema, with_copy
from rayferry.job.sink import PartsDatasink
from rayferry.job.source import PromptDatasource
from rayferry.job.spec import parse

MINIMAL = {"model": "m", "input": {"uri": "s3://bucket/in/"}, "output": {"uri": "s3://bucket/out/"}}


@pytest.fixture(scope="package")
def cluster(stack):
    """This process as a driver on the session's Ray head."""
    ray.init(address=stack.gcs_address, log_to_driver=False, logging_level="ERROR")
    yield stack
    ray.shutdown()


@pytest.fixture(scope="session")
def make_spec():
    """Builds a job from the shortest job file there is, with changes merged in."""

    def make(**changes):
        data = copy.deepcopy(MINIMAL)
        for key, value in changes.items():
            data[key] = data[key] | value if isinstance(data.get(key), dict) else value
        return parse(data, "job.yaml")

    return make


class NearBoard:
    """A board in this process that is spoken to as an actor is."""

    def __init__(self):
        self.board = Board()

    def __getattr__(self, name):
        method = getattr(self.board, name)
        return SimpleNamespace(remote=lambda *args, **kwargs: ray.put(method(*args, **kwargs)))


@pytest.fixture
def near_board(cluster):
    """Where tasks and replicas tell how far they are."""
    return NearBoard()


@pytest.fixture(scope="session")
def records_as():
    """Reads a file's content, or an open file, as a format; gives (position, record) of all that is read."""

    def read(content, format_, **options):
        chunks = read_chunks(pa.BufferReader(content) if isinstance(content, bytes) else content, format_, **options)
        return [found for chunk in chunks for found in zip(chunk.positions, chunk.to_list(), strict=True)]

    return read


@pytest.fixture(scope="session")
def read_as(records_as):
    """The same, a bad record as the stage and the kind of its failure."""

    def read(content, format_, **options):
        return [
            (position, (record.stage, record.error_type) if isinstance(record, BadRecordError) else record)
            for position, record in records_as(content, format_, **options)
        ]

    return read


@pytest.fixture(scope="session")
def bad_as(records_as):
    """The bad records alone."""
    return lambda *args: [record for _, record in records_as(*args) if isinstance(record, BadRecordError)]


@pytest.fixture
def read(cluster, tmp_path, make_spec):
    """Reads files given by name and content as the read tasks would, in this process; gives their blocks."""

    def read_blocks(files, job=None, **options):
        for name, content in files.items():
            path = tmp_path / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        spec = make_spec(input={"uri": str(tmp_path / "in"), **options}, **(job or {}))
        found = look(spec)
        blocks = [block for task in PromptDatasource(spec, found).get_read_tasks(1) for block in task()]
        return blocks if found.copied is None else [with_copy(block, found.copied) for block in blocks]

    return read_blocks


@pytest.fixture
def read_rows(read):
    """The same, as rows."""
    return lambda files, **options: [row for block in read(files, **options) for row in block.to_pylist()]


@pytest.fixture
def carry(read, tmp_path, make_spec):
    """Files through source, a stub of the predictor and sink, in this process; gives the rows of data/ and errors/."""

    def answer(prompt):
        token = SimpleNamespace(text=f"<{prompt}>", finish_reason="stop", token_ids=[1])
        return None if prompt is None else [SimpleNamespace(outputs=[token], prompt_token_ids=[1, 2])]

    def carry_files(files, **options):
        spec = make_spec(input={"uri": str(tmp_path / "in"), **options})
        blocks = read(files, **options)
        answers = Answers(spec)
        answered = [answers.add_to(block, [answer(p) for p in block.column("prompt").to_pylist()]) for block in blocks]
        schema = data_schema(spec, look(spec).columns.schema, openai=False)
        sink = PartsDatasink(Layout(str(tmp_path / "out")), "run", 1000, schema)
        rows = {"data": [], "errors": []}
        sink.on_write_complete(SimpleNamespace(write_returns=[sink.write(answered, SimpleNamespace(task_idx=0))]))
        for part in sink.parts:
            rows[part.kind] += pq.read_table(part.uri).to_pylist()
        return rows["data"], rows["errors"]

    return carry_files
