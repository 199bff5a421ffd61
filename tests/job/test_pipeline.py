"""The whole pipeline on a real Ray head and a real S3 server; only the model is a stub."""

import asyncio
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import traceback
import uuid
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import boto3
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import ray
from ray.util.annotations import RayDeprecationWarning

from rayferry.job import RAY_FLOOR, pipeline, storage
from rayferry.job.answers import Answers
from rayferry.job.earlier import Earlier
from rayferry.job.errors import EXIT_PASSING, JobError, TooManyErrorsError, TornError, is_passing
from rayferry.job.layout import Layout
from rayferry.job.rows import data_schema
from rayferry.job.spec import parse
from rayferry.submit.local import stack as local_stack

# a run's own warnings are one test's matter; here they would end it
pytestmark = pytest.mark.filterwarnings("ignore::ray.util.annotations.RayDeprecationWarning")


class Upper:
    """Answers in capitals at once; refuses every prompt that begins with `refuse`."""

    def __init__(self, spec, device, progress, openai, **_options):
        self.answers = Answers(spec, openai=openai)
        self.spec = spec
        self.progress = progress
        progress.replica_ready.remote(load_s=0.5, vllm="stub")

    async def __call__(self, table):
        return self.answers.add_to(table, [self.answer(p) for p in table.column("prompt").to_pylist()])

    def answer(self, prompt):
        if prompt is None:
            return None
        if prompt.startswith("refuse"):
            return ValueError("too long")
        words = prompt.split()
        answer = SimpleNamespace(
            text=prompt.upper(), finish_reason="stop", token_ids=words, stop_reason=None, logprobs=None
        )
        return [SimpleNamespace(outputs=[answer], prompt_token_ids=[0, *words])]


class Unloadable(Upper):
    """Cannot load its model, and tells so."""

    def __init__(self, spec, device, progress, openai, **_options):
        ray.get(progress.failed.remote("model 'm' could not be loaded: no such file"))
        raise OSError("no such file")


class Lossy(Upper):
    """Gives back fewer rows than it gets."""

    async def __call__(self, table):
        return (await super().__call__(table)).slice(1)


class LossyOnce(Upper):
    """Gives back fewer rows than it gets, if its model names a file that is not there; puts it there."""

    def __init__(self, spec, device, progress, openai, **_options):
        super().__init__(spec, device, progress, openai)
        self.num_lost = 0 if Path(spec.model).exists() else 1
        Path(spec.model).touch()

    async def __call__(self, table):
        return (await super().__call__(table)).slice(self.num_lost)


class Breaking(Upper):
    """Breaks at the prompt `boom` once a part is written, if its model names a file that is there."""

    def __init__(self, spec, device, progress, openai, **_options):
        super().__init__(spec, device, progress, openai)
        self.is_broken = Path(spec.model).exists()

    async def __call__(self, table):
        if self.is_broken and "boom" in table.column("prompt").to_pylist():
            while not (await self.progress.snapshot.remote()).succeeded:  # noqa: ASYNC110  # it is another process's
                await asyncio.sleep(0.2)
            raise RuntimeError("boom")
        return await super().__call__(table)


class Regicide(Upper):
    """Kills the board, once some rows are written."""

    async def __call__(self, table):
        if "boom" in table.column("prompt").to_pylist():
            while not (await self.progress.snapshot.remote()).succeeded:  # noqa: ASYNC110  # it is another process's
                await asyncio.sleep(0.2)
            ray.kill(self.progress)
        return await super().__call__(table)


class Moody(Upper):
    """Refuses no prompt once a file of its model's name is there."""

    def answer(self, prompt):
        return super().answer(
            prompt and prompt.replace("refuse", "allow") if Path(self.spec.model).exists() else prompt
        )


class Mortal(Upper):
    """Its process is killed in the middle of its first batch. Its model's name is a file that keeps this in mind."""

    async def __call__(self, table):
        self.die_once(Path(self.spec.model))
        return await super().__call__(table)

    def die_once(self, mark):
        if not mark.exists():
            mark.touch()
            os._exit(1)


ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def parquet(columns):
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


FILES = {
    "a.txt": b"one two\n\nrefuse me\n\xff\nthree\r\n",
    "b.jsonl": b'{"text": "four", "id": "x", "stage": 9, "meta": {"k": [1]}}\n{"text":\n{"n": 1}\n[]\n{"text": "five"}',
    "c.csv": b'\xef\xbb\xbftext,note\r\n"six\r\nseven",a\r\nshort\r\neight,b\r\n',
    "d.parquet": parquet({"text": [f"row {index}" for index in range(1000)], "n": list(range(1000))}),
    "e.bin": b"nine\nten\n",
    "f.jsonl.gz": gzip.compress(b'{"text": "eleven"}\n'),
    "day=1/s päce;50%.txt": b"twelve\n",
    "_SUCCESS": b"not an input",
    "empty.txt": b"",
}
ANSWERS = {
    "a.txt:0": "ONE TWO",
    "a.txt:4": "THREE",
    "b.jsonl:0": "FOUR",
    "b.jsonl:4": "FIVE",
    "c.csv:0": "SIX\r\nSEVEN",
    "c.csv:2": "EIGHT",
    **{f"d.parquet:{index}": f"ROW {index}" for index in range(1000)},
    "e.bin:0": "NINE\nTEN\n",
    "f.jsonl.gz:0": "ELEVEN",
    "day=1/s päce;50%.txt:0": "TWELVE",
}
FAILURES = {
    "a.txt:2": ("engine", "ValueError"),
    "a.txt:3": ("decode", "UnicodeDecodeError"),
    "b.jsonl:1": ("parse", "JSONDecodeError"),
    "b.jsonl:2": ("parse", "MissingColumn"),
    "b.jsonl:3": ("parse", "ValueError"),
    "c.csv:1": ("parse", "ValueError"),
}


@pytest.fixture(scope="module")
def public_uri(stack):
    """A prefix that anybody may read, filled with FILES."""
    bucket = f"public-{uuid.uuid4().hex}"
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket=bucket)
    actions = [("s3:ListBucket", f"arn:aws:s3:::{bucket}"), ("s3:GetObject", f"arn:aws:s3:::{bucket}/*")]
    statements = [{"Effect": "Allow", "Principal": "*", "Action": [a], "Resource": [r]} for a, r in actions]
    s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": statements}))
    for name, content in FILES.items():
        s3.put_object(Bucket=bucket, Key=f"in/{name}", Body=content)
    return f"s3://{bucket}/in/"


def fresh_uri():
    return f"s3://{local_stack.BUCKET}/{uuid.uuid4().hex}/"


def rows_of(uri):
    files, path = storage.filesystem(uri)
    return pq.read_table(path, filesystem=files).to_pylist()


def keys_under(uri):
    """Names of all objects under a prefix."""
    files, root = storage.filesystem(uri)
    found = files.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True))
    return sorted(info.path.removeprefix(root) for info in found if info.is_file)


def bytes_of(uri):
    files, path = storage.filesystem(uri)
    with files.open_input_stream(path) as stream:
        return stream.read()


def carry_out(spec, predictor=Upper):
    """Runs a job; gives its manifest, the rows of its parts, what it said and what it was warned of."""
    with warnings.catch_warnings(record=True) as caught, redirect_stdout(io.StringIO()) as said:
        warnings.simplefilter("always")
        manifest = pipeline.run(spec, "run-1", predictor)
    rows = {"data": [], "errors": []}
    for part in manifest["parts"]:
        if part["kind"] != "openai":
            rows[part["kind"]] += rows_of(part["uri"])
    return SimpleNamespace(
        spec=spec,
        layout=Layout(spec.output.uri),
        manifest=manifest,
        data={row["id"]: row for row in rows["data"]},
        errors={row["id"]: row for row in rows["errors"]},
        openai=[part["uri"] for part in manifest["parts"] if part["kind"] == "openai"],
        num_rows=len(rows["data"]) + len(rows["errors"]),
        said=said.getvalue(),
        warned=[str(warning.message) for warning in caught if issubclass(warning.category, RayDeprecationWarning)],
    )


@pytest.fixture(scope="module")
def done(cluster, public_uri, make_spec):
    """A run over every format, with rows of every kind and several parts."""
    output = {"uri": fresh_uri(), "rows_per_part": 250, "preview_rows": 1}
    return carry_out(make_spec(input={"uri": public_uri}, output=output, batch_size=100))


@pytest.fixture(scope="module")
def again(cluster, public_uri, make_spec, tmp_path_factory):
    """The same input read without credentials, cut into other batches and parts, and a replica killed on the way."""
    source = {"uri": public_uri.replace("s3://", "s3://anonymous@")}
    mark = str(tmp_path_factory.mktemp("replica") / "killed")
    return carry_out(make_spec(model=mark, input=source, output={"uri": fresh_uri()}, batch_size=333), Mortal)


def test_every_good_row_of_every_format_has_its_answer(done):
    assert {key: row["generated_text"] for key, row in done.data.items()} == ANSWERS


def test_every_bad_row_is_an_error_with_its_stage_and_type(done):
    assert {key: (row["stage"], row["error_type"]) for key, row in done.errors.items()} == FAILURES


def test_every_row_has_its_own_id(done):
    assert done.num_rows == len(ANSWERS) + len(FAILURES)


def test_the_counts_are_those_of_the_rows(done):
    assert done.manifest["counts"] == {
        "total": len(ANSWERS) + len(FAILURES),
        "succeeded": len(ANSWERS),
        "failed": len(FAILURES),
    }


def test_tokens_are_summed_over_the_answers(done):
    words = sum(len(answer.split()) for answer in ANSWERS.values())
    assert done.manifest["tokens"] == {"input": words + len(ANSWERS), "generated": words}


def test_an_answer_comes_with_its_prompt_and_its_model(done):
    row = done.data["a.txt:0"]
    assert (row["prompt"], row["finish_reason"], row["model"]) == ("one two", "stop", "m")


def test_the_inputs_own_columns_come_with_the_answer(done):
    row = done.data["b.jsonl:0"]
    assert (row["input_id"], row["input_stage"], row["meta"]) == ("x", 9, '{"k": [1]}')


def test_an_error_says_where_its_row_came_from(done, public_uri):
    row = done.errors["a.txt:3"]
    assert (row["source_uri"], row["position"]) == (public_uri + "a.txt", 3)


def test_several_parts_are_written(done):
    assert len([part for part in done.manifest["parts"] if part["kind"] == "data"]) > 2


def test_the_manifest_lists_exactly_the_parts_that_are_there(done):
    there = [key for key in keys_under(done.layout.output_uri) if not key.startswith("_meta/")]
    assert [part["uri"].removeprefix(done.layout.output_uri) for part in done.manifest["parts"]] == there


def test_every_part_has_the_hash_and_the_size_of_its_bytes(done):
    for part in done.manifest["parts"]:
        content = bytes_of(part["uri"])
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (part["sha256"], part["num_bytes"])


def test_every_part_has_the_rows_that_it_is_said_to_have(done):
    assert all(len(rows_of(part["uri"])) == part["num_rows"] for part in done.manifest["parts"])


def test_the_manifest_that_is_returned_is_the_one_that_is_written(done):
    assert json.loads(bytes_of(done.layout.manifest_uri)) == done.manifest


def test_the_job_file_is_kept_with_the_output(done):
    assert parse(json.loads(bytes_of(done.layout.spec_uri)), "spec.json") == done.spec


def test_the_last_progress_is_that_of_the_whole_run(done):
    last = json.loads(bytes_of(done.layout.progress_uri))
    assert (last["rows_read"], last["succeeded"], last["failed"]) == (
        len(ANSWERS) + len(FAILURES),
        len(ANSWERS),
        len(FAILURES),
    )


def test_the_manifest_tells_what_the_replica_said_of_itself(done):
    assert (done.manifest["seconds"]["load"], done.manifest["versions"]["vllm"]) == ([0.5], "stub")


def test_the_log_tells_the_input(done):
    size = sum(len(content) for name, content in FILES.items() if name != "_SUCCESS")
    assert f"input: 7 files, {size:,} bytes (binary, csv, jsonl, parquet, text); model: m; task: generate" in done.said


def test_the_log_tells_that_there_is_no_gpu(done):
    assert "no GPU on this cluster: each replica runs on CPUs" in done.said


def test_nothing_is_used_that_ray_will_take_away(done):
    assert done.warned == []


def test_a_public_bucket_is_read_without_credentials(again):
    assert again.manifest["counts"]["succeeded"] == len(ANSWERS)


def test_the_same_input_has_the_same_ids_however_it_is_cut(done, again):
    assert (again.data.keys(), again.errors.keys()) == (done.data.keys(), done.errors.keys())


def test_the_same_input_has_the_same_answers_however_it_is_cut(done, again):
    assert {key: row["generated_text"] for key, row in again.data.items()} == {
        key: row["generated_text"] for key, row in done.data.items()
    }


def test_every_row_is_there_once_though_a_replica_was_killed(again):
    assert (Path(again.spec.model).exists(), again.num_rows) == (True, len(ANSWERS) + len(FAILURES))


@pytest.fixture
def spec_of(cluster, bucket_uri, make_spec):
    """Puts files into a fresh bucket prefix and gives the job that reads them."""

    def put(files, **changes):
        for name, content in files.items():
            storage.write_bytes(f"{bucket_uri}/in/{name}", content)
        return make_spec(input={"uri": f"{bucket_uri}/in/"}, output={"uri": f"{bucket_uri}/out/"}, **changes)

    return put


def test_a_run_that_lost_a_row_goes_on_by_itself(spec_of, tmp_path, capsys):
    spec = spec_of({"a.txt": b"x\n" * 10}, model=str(tmp_path / "was-here"))
    manifest = pipeline.run(spec, "run-1", LossyOnce)
    ids = [row["id"] for part in manifest["parts"] for row in rows_of(part["uri"])]
    assert (manifest["counts"]["succeeded"], sorted(ids)) == (10, sorted(f"a.txt:{at}" for at in range(10)))
    assert manifest["attempts"] == ["run-1"]
    assert "9 answers and 0 errors were written" in capsys.readouterr().out


def test_no_manifest_is_written_when_rows_are_missing(spec_of):
    spec = spec_of({"a.txt": b"x\n" * 10})
    with pytest.raises(TornError, match="10 rows were read, but 9 answers and 0 errors were written"):
        pipeline.run(spec, "run-1", Lossy)
    assert "manifest.json" not in storage.children(Layout(spec.output.uri).meta_uri)


@pytest.mark.parametrize("key", ["_meta/manifest.json", "data/x.parquet", "errors/x.parquet"])
def test_an_output_that_holds_a_run_is_refused(spec_of, key):
    spec = spec_of({"a.txt": b"x\n"})
    storage.write_bytes(spec.output.uri + key, b"x")
    with pytest.raises(JobError, match=r"is not empty .*--overwrite.* or choose another output.uri"):
        pipeline.run(spec, "run-2", Upper)


def test_an_output_that_is_refused_is_not_accepted_first(spec_of):
    spec, seen = spec_of({"a.txt": b"x\n"}), []
    storage.write_bytes(spec.output.uri + "data/x.parquet", b"x")
    with pytest.raises(JobError, match="is not empty"):
        pipeline.run(spec, "run-2", Upper, accepted=seen.append)
    assert seen == []


def test_an_output_that_is_overwritten_is_accepted_once_the_earlier_run_is_gone(spec_of):
    spec, seen = spec_of({"a.txt": b"x\n"}), []
    storage.write_bytes(Layout(spec.output.uri).manifest_uri, b"{}")

    def accepted(layout):
        seen.append(storage.read_bytes(layout.manifest_uri))

    pipeline.run(spec, "run-2", Upper, accepted=accepted, earlier=Earlier(overwrite=True))
    assert seen == [None]


def test_an_output_is_accepted_before_anything_else_can_fail(spec_of):
    spec, seen = spec_of({}), []
    with pytest.raises(JobError, match="no input there"):
        pipeline.run(spec, "run-1", Upper, accepted=seen.append)
    assert seen == [Layout(spec.output.uri)]


@pytest.mark.parametrize(
    ("files", "changes", "message"),
    [
        ({}, {}, "no input there"),
        ({"a.txt": b"", "_b.txt": b"x"}, {}, "no input there"),
        ({"a.txt": b"x"}, {"engine": {"tensor_parallel_size": 2}}, "tensor_parallel_size=2 needs GPUs"),
        ({"a.txt": b"x"}, {"resources": {"device": "gpu"}}, "device: gpu needs GPUs, and no node has any"),
    ],
)
def test_a_run_that_cannot_start_is_refused_and_writes_nothing(spec_of, files, changes, message):
    spec = spec_of(files, **changes)
    with pytest.raises(JobError, match=message):
        pipeline.run(spec, "run-1", Upper)
    assert keys_under(spec.output.uri) == []


@pytest.mark.parametrize("version", [RAY_FLOOR, f"{RAY_FLOOR}.1rc1", "3.0.0.dev0"])
def test_a_new_enough_ray_is_accepted(version):
    assert pipeline.check_ray(version) is None


@pytest.mark.parametrize("version", ["2.48.0", "2.9.3", "1.99.0"])
def test_an_older_ray_is_refused(version):
    with pytest.raises(JobError, match=f"the cluster runs Ray {version}; Rayferry needs {RAY_FLOOR} or newer"):
        pipeline.check_ray(version)


def test_a_model_that_cannot_be_loaded_ends_the_run_with_the_replicas_own_words(spec_of):
    spec = spec_of({"a.txt": b"x\n"})
    with pytest.raises(JobError, match=r"^model 'm' could not be loaded: no such file$"):
        pipeline.run(spec, "run-1", Unloadable)
    assert "manifest.json" not in storage.children(Layout(spec.output.uri).meta_uri)


def test_own_columns_of_differing_types_are_the_same_in_every_part(spec_of):
    found = carry_out(
        spec_of(
            {
                "a.jsonl": b'{"text": "a", "v": 1, "w": {}}\n',
                "b.jsonl": b'{"text": "b", "v": "s", "w": {"k": [1]}}\n',
                "c.jsonl": b'{"text": "c", "v": {"k": 1}, "w": [[]]}\n',
            }
        )
    )
    assert {key: (row["v"], row["w"]) for key, row in found.data.items()} == {
        "a.jsonl:0": ("1", "{}"),
        "b.jsonl:0": ("s", '{"k": [1]}'),
        "c.jsonl:0": ('{"k": 1}', "[[]]"),
    }


def test_a_run_of_openai_lines_answers_each_custom_id_once(spec_of):
    line = {"method": "POST", "url": "/v1/completions"}
    records = [
        line | {"custom_id": "a", "body": {"prompt": "one"}},
        line | {"custom_id": "b", "body": {"prompt": "refuse"}},
        line | {"custom_id": "a", "body": {"prompt": "two"}},
        line | {"custom_id": "c", "body": {}},
    ]
    files = {f"{name}.jsonl": json.dumps(record).encode() for name, record in zip("wxyz", records, strict=True)}
    found = carry_out(spec_of(files, on_error={"max_error_rate": 1.0}))
    assert {key: row["generated_text"] for key, row in found.data.items()} == {"a": "ONE"}
    assert {key: row["error_type"] for key, row in found.errors.items()} == {
        "b": "ValueError",
        "y.jsonl:0": "DuplicateId",
        "c": "BadPrompt",
    }
    lines = [json.loads(text) for text in bytes_of(found.openai[0]).splitlines()]
    assert sorted((told["custom_id"], told["response"] is not None) for told in lines) == [
        ("a", False),
        ("a", True),
        ("b", False),
        ("c", False),
    ]


def test_rows_of_another_format_beside_openai_lines_are_errors_and_do_not_end_the_run(spec_of):
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "one"}}
    files = {"a.jsonl": json.dumps(line).encode(), "b.txt": b"x\n\ny\n", "c.csv": b"text\nz\n"}
    found = carry_out(spec_of(files, on_error={"max_error_rate": 1.0}))
    assert {key: row["generated_text"] for key, row in found.data.items()} == {"a": "ONE"}
    assert {key: row["stage"] for key, row in found.errors.items()} == dict.fromkeys(
        ["b.txt:0", "b.txt:2", "c.csv:0"], "parse"
    )


def test_a_run_that_answers_no_row_writes_one_data_part_without_rows_and_with_every_column(spec_of):
    spec = spec_of({"a.jsonl": b'{"text": "refuse", "n": 1}\n{"text": "", "n": 2}\n'}, on_error={"max_error_rate": 1})
    found = carry_out(spec)
    (part,) = [part for part in found.manifest["parts"] if part["kind"] == "data"]
    files, folder = storage.filesystem(found.layout.data_uri)
    table = pq.read_table(folder, filesystem=files)
    own = pa.schema([("text", pa.string()), ("n", pa.int64()), ("rescued_data", pa.string())])
    assert keys_under(found.layout.data_uri) == [part["uri"].removeprefix(found.layout.data_uri)]
    assert (part["num_rows"], table.num_rows, len(found.errors)) == (0, 0, 2)
    assert table.schema.equals(data_schema(spec, own, openai=False))


def test_a_hopeless_run_ends_early(spec_of):
    spec = spec_of({"a.txt": b"refuse\n" * 20_000})
    with pytest.raises(TooManyErrorsError, match=r"^stopped early: [\d,]+ of (at most about )?[\d,]+ rows failed"):
        pipeline.run(spec, "run-1", Upper)
    assert "manifest.json" not in storage.children(Layout(spec.output.uri).meta_uri)


SHARE = """
import os, sys
import rayferry.job.__main__
from rayferry.job import checkpoint, pipeline
from rayferry.job.spec import parse

def begins(*_args):
    from ray.data._internal import cluster_autoscaler as made
    print(made.RateBasedClusterAutoscaler.AUTOSCALING_REQUEST_EXPIRE_TIME_S, flush=True)
    os._exit(0)

assert "ray.data" not in sys.modules
checkpoint.check_output = begins
spec = {"model": "m", "input": {"uri": "/in"}, "output": {"uri": sys.argv[1]}}
pipeline.run(parse(spec, "job.yaml"), "run-1")
"""
NAME = "RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S"


@pytest.mark.parametrize(("own", "seconds"), [({}, "30"), ({NAME: "7"}, "7")], ids=str)
def test_a_killed_attempts_share_of_the_cluster_soon_expires(tmp_path, own, seconds):
    environ = {name: value for name, value in os.environ.items() if name != NAME} | own
    words = [sys.executable, "-c", SHARE, str(tmp_path / "out")]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, env=environ)
    assert done.stdout.decode().split() == [seconds]


def lines_of_words(name, count):
    return "".join(f"{name} {at}\n" for at in range(count)).encode()


def driver(spec, address, predictor):
    """Runs a job in a process of its own."""
    words = [sys.executable, __file__, json.dumps(spec.to_json()), address, predictor.__name__]
    return subprocess.run(words, check=False, capture_output=True, text=True, timeout=120)


def broken_off(spec, address):
    """Runs a job in a process of its own until it breaks, with part of its rows done; it will not break again."""
    mark = Path(spec.model)
    mark.touch()
    ended = driver(spec, address, Breaking)
    assert ("boom" in ended.stderr, ended.returncode) == (True, 1)
    mark.unlink()


def parts_there(spec):
    return {key for key in keys_under(spec.output.uri) if key.startswith(("data/", "errors/"))}


def names_of(manifest):
    return {"/".join(part["uri"].rsplit("/", 2)[1:]) for part in manifest["parts"]}


def test_a_run_that_broke_off_is_resumed_then_over_then_given_more_then_done_anew(spec_of, tmp_path, cluster):
    stream = io.BytesIO()
    pq.write_table(pa.table({"text": [f"p {at}" for at in range(300)]}), stream, row_group_size=100)
    files = {f"{name}.txt": lines_of_words(name, 300) for name in "abc"} | {"p.parquet": stream.getvalue()}
    files["b.txt"] += b"boom\n"
    spec = spec_of(files, model=str(tmp_path / "break"), batch_size=40)
    spec = spec.model_copy(update={"output": spec.output.model_copy(update={"rows_per_part": 80})})
    broken_off(spec, cluster.gcs_address)
    records = [key for key in keys_under(spec.output.uri) if "checkpoint/run-1-0" in key]
    assert records
    before = parts_there(spec)
    storage.write_bytes(f"{spec.output.uri}data/run-1-000099-ffff.parquet", b"half a part, which no record names")

    resumed = pipeline.run(spec, "run-1-a2", Breaking, earlier=Earlier(resume=True))
    rows = [row for part in resumed["parts"] for row in rows_of(part["uri"])]
    assert len(rows) == len({row["id"] for row in rows}) == 1201
    assert {row["generated_text"] for row in rows if row["id"].startswith("b")} >= {"B 0", "B 299", "BOOM"}
    assert resumed["counts"] == {"total": 1201, "succeeded": 1201, "failed": 0}
    assert resumed["attempts"] == ["run-1", "run-1-a2"]
    assert parts_there(spec) == names_of(resumed)
    kept = {name for name in names_of(resumed) if "/run-1-0" in name}
    assert len(kept) >= len(records)
    assert kept <= before

    again = pipeline.run(spec, "run-1-a3", Breaking, earlier=Earlier(resume=True))
    assert again == resumed | {"submission_id": "run-1-a3", "attempts": ["run-1", "run-1-a2", "run-1-a3"]}

    storage.write_bytes(f"{spec.input.uris[0]}z.txt", b"new\n")
    with pytest.raises(JobError, match=r"1 file new, such as .*z.txt"):
        pipeline.run(spec, "run-2", Breaking, earlier=Earlier(resume=True))
    more = pipeline.run(spec, "run-2", Breaking, earlier=Earlier(resume=True, new_input=True))
    assert more["counts"]["succeeded"] == 1202
    assert len(names_of(more) - names_of(again)) == 1

    anew = pipeline.run(spec, "run-3", Breaking, earlier=Earlier(overwrite=True))
    assert anew["counts"]["succeeded"] == 1202
    assert all("/run-3-" in name for name in names_of(anew))
    assert not any("run-1" in key for key in keys_under(spec.output.uri))


def test_a_run_whose_weights_changed_answers_no_row_more_and_one_that_is_over_needs_none(spec_of, bucket_uri):
    spec = spec_of({"a.txt": b"x\n" * 10}, model=f"{bucket_uri}/model")
    storage.write_bytes(f"{spec.model}/model.safetensors", b"weights")
    over = pipeline.run(spec, "run-1", Upper)
    storage.write_bytes(f"{spec.model}/model.safetensors", b"others")
    storage.write_bytes(f"{spec.input.uris[0]}b.txt", b"new\n")
    with pytest.raises(JobError, match=r"the model is not what .* was begun with \(1 file changed, such as "):
        pipeline.run(spec, "run-2", Upper, earlier=Earlier(resume=True, new_input=True))
    storage.remove(f"{spec.input.uris[0]}b.txt")
    storage.remove(f"{spec.model}/")
    assert pipeline.run(spec, "run-3", Upper, earlier=Earlier(resume=True))["counts"] == over["counts"]


def test_a_run_whose_board_dies_is_for_another_attempt_to_end(spec_of, cluster):
    spec = spec_of({"a.txt": lines_of_words("a", 300) + b"boom\n"}, batch_size=40)
    spec = spec.model_copy(update={"output": spec.output.model_copy(update={"rows_per_part": 80})})
    assert driver(spec, cluster.gcs_address, Regicide).returncode == EXIT_PASSING
    resumed = pipeline.run(spec, "run-1-a2", Upper, earlier=Earlier(resume=True, over=("run-1",)))
    assert resumed["counts"] == {"total": 301, "succeeded": 301, "failed": 0}


def lines_of(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_files_that_come_later_take_no_id_and_no_type_of_the_first_ones(spec_of):
    rows = [{"key": f"k{at}", "text": f"old {at}", "n": at} for at in range(20)]
    spec = spec_of({"m.jsonl": lines_of(*rows)}, on_error={"max_error_rate": 1.0})
    spec = spec.model_copy(update={"input": spec.input.model_copy(update={"id_column": "key"})})
    pipeline.run(spec, "nightly", Upper)
    newer = [{"key": f"k{at}", "text": f"new {at}", "n": "no number", "more": 1.5} for at in range(15, 25)]
    storage.write_bytes(f"{spec.input.uris[0]}a.jsonl", lines_of(*newer))
    # by the same name, as of a job that a new cluster carries out
    manifest = pipeline.run(spec, "nightly", Upper, earlier=Earlier(resume=True, new_input=True))
    lenient = spec.model_copy(update={"on_error": spec.on_error.model_copy(update={"max_error_rate": 0.5})})
    again = pipeline.run(lenient, "nightly", Upper, earlier=Earlier(resume=True))
    tables = {part["uri"]: pq.read_table(io.BytesIO(bytes_of(part["uri"]))) for part in manifest["parts"]}
    found = [row for part in manifest["parts"] if part["kind"] == "data" for row in tables[part["uri"]].to_pylist()]
    assert {row["id"]: row["prompt"] for row in found} == {
        f"k{at}": f"{'old' if at < 20 else 'new'} {at}" for at in range(25)
    }
    assert len(found) == 25
    assert manifest["counts"] == {"total": 30, "succeeded": 25, "failed": 5}
    assert {str(table.schema.field("n").type) for uri, table in tables.items() if "/data/" in uri} == {"int64"}
    assert {row["rescued_data"] for row in found if row["id"] == "k20"} == {'{"n": "no number"}'}
    assert [row["more"] for row in found if row["id"] == "k20"] == [1.5]
    assert (again["parts"], again["attempts"][-1]) == (manifest["parts"], "nightly")
    assert again["max_error_rate"] == 0.5


def test_rows_that_failed_are_tried_again_and_replace_their_errors(spec_of, tmp_path):
    line = {"method": "POST", "url": "/v1/completions"}
    prompts = [f"{'refuse' if at % 10 == 0 else 'answer'} {at}" for at in range(200)] + [None]
    lines = [json.dumps(line | {"custom_id": f"c{at}", "body": {"prompt": text}}) for at, text in enumerate(prompts)]
    happy = tmp_path / "happy"
    spec = spec_of({"a.jsonl": "\n".join(lines).encode()}, model=str(happy), on_error={"max_error_rate": 1.0})
    spec = spec.model_copy(update={"output": spec.output.model_copy(update={"rows_per_part": 64})})
    first = pipeline.run(spec, "run-1", Moody)
    assert first["counts"] == {"total": 201, "succeeded": 180, "failed": 21}

    happy.touch()
    again = pipeline.run(spec, "run-2", Moody, earlier=Earlier(retry_failed=True, run="run-2/1"))
    assert again["counts"] == {"total": 201, "succeeded": 200, "failed": 1}
    assert parts_there(spec) == {name for name in names_of(again) if name.endswith(".parquet")}
    assert {part["uri"] for part in first["parts"] if part["kind"] == "data"} < {part["uri"] for part in again["parts"]}
    found = {kind: [] for kind in ("data", "errors", "openai")}
    for part in again["parts"]:
        lines = bytes_of(part["uri"]).splitlines()
        rows = rows_of(part["uri"]) if part["kind"] != "openai" else list(map(json.loads, lines))
        found[part["kind"]] += rows
        assert (part["num_rows"], hashlib.sha256(bytes_of(part["uri"])).hexdigest()) == (len(rows), part["sha256"])
    assert {row["id"]: row["generated_text"] for row in found["data"]} == {
        f"c{at}": text.replace("refuse", "allow").upper() for at, text in enumerate(prompts[:-1])
    }
    assert [row["id"] for row in found["errors"]] == ["c200"]
    answered = {row["custom_id"]: row["error"] is None for row in found["openai"]}
    assert len(found["openai"]) == 201
    assert [name for name, is_good in answered.items() if not is_good] == ["c200"]

    later = Earlier(retry_failed=True, run="run-2/1", later=True)
    for name, earlier in {"run-2-a2": later, "run-3": Earlier(resume=True)}.items():
        assert pipeline.run(spec, name, Moody, earlier=earlier)["parts"] == again["parts"]
    once_more = pipeline.run(spec, "run-4", Moody, earlier=Earlier(retry_failed=True, run="run-4/1"))
    assert once_more["counts"] == again["counts"]
    assert once_more["parts"] != again["parts"]


def test_where_no_row_failed_none_is_tried_again(spec_of):
    spec = spec_of({"a.txt": b"x\ny\n"})
    first = pipeline.run(spec, "run-1", Upper)
    again = pipeline.run(spec, "run-2", Upper, earlier=Earlier(retry_failed=True))
    assert again == first | {"submission_id": "run-2", "attempts": ["run-1", "run-2"]}


if __name__ == "__main__":  # an attempt that breaks, see `driver`
    ray.init(address=sys.argv[2])
    try:
        pipeline.run(parse(json.loads(sys.argv[1]), "job"), "run-1", globals()[sys.argv[3]])
    except Exception as error:  # noqa: BLE001  # whatever Ray makes of it
        traceback.print_exc()
        sys.exit(EXIT_PASSING if is_passing(error, is_under_way=False) else 1)
