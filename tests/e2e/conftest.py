"""The installed `rayferry` command, the demo model, and jobs that several tests look at."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from rayferry.submit import s3
from rayferry.submit.local.model import demo_model

from ..submit.fault_proxy import FaultProxy  # noqa: TID252  # tests are no package that is installed
from . import batches

PROMPTS = [
    "The capital of France is",
    "Once upon a time there was a",
    "Water boils at",
    "The three primary colours are",
    "def add(a, b):\n    return",
    "My favourite season is",
    "The opposite of hot is",
    "In the middle of the night",
    "A triangle has",
    "The sun rises in the",
    "To make bread you need",
    "The first president of the United States was",
]
MAX_TOKENS = 24
ENGINE = {
    "max_model_len": 256,
    "enforce_eager": True,
    "dtype": "float32",
    "max_num_seqs": 16,
    "max_num_batched_tokens": 512,
}
LONG = {"sampling": {"max_tokens": 100000, "ignore_eos": True}, "engine": {"max_model_len": 8192}}
HERE = Path(__file__).parent
COMMAND = str(Path(sys.executable).parent / "rayferry")


def run(*arguments):
    """Runs the installed command to its end, away from the checkout."""
    return subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, cwd="/")


def follow(*arguments):
    """Starts the installed command; gives its process once it says that the job runs."""
    words = [COMMAND, *map(str, arguments)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/")
    said = ""
    for line in process.stderr:
        said += line
        if line.strip().endswith("RUNNING"):
            return process
    raise AssertionError((process.wait(), said))


def end_of(process, timeout_s=60):
    """What such a process ended with, its stderr from then on."""
    try:
        out, said = process.communicate(timeout=timeout_s)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, said)


@pytest.fixture
def rayferry(stack):
    """The installed command, pointed at the session's stack."""
    return run


@pytest.fixture(scope="session")
def model():
    """The folder of the demo model's checkpoint; made once for a machine."""
    return str(demo_model(print))


@pytest.fixture(scope="session")
def job_file(stack, model, tmp_path_factory):
    """Writes job files that differ from a small greedy job in what is given."""

    def write(name, **changes):
        job = {
            "name": name,
            "model": model,
            "input": {"uri": f"s3://rayferry/e2e/{name}/in/"},
            "output": {"uri": f"s3://rayferry/e2e/{name}/out/", "rows_per_part": 4},
            "sampling": {"temperature": 0, "max_tokens": MAX_TOKENS},
            "engine": ENGINE,
            "batch_size": 2,
        } | changes
        path = tmp_path_factory.mktemp(name) / "job.json"
        path.write_text(json.dumps(job))
        lines = [json.dumps({"text": text, "number": number}) for number, text in enumerate(PROMPTS)]
        for number in range(3):
            s3.write_bytes(f"s3://rayferry/e2e/{name}/in/{number}.jsonl", "\n".join(lines[number::3]).encode())
        return path

    return write


@pytest.fixture(scope="session")
def greedy_job(job_file):
    """A finished job: PROMPTS in three files, and a fourth with rows that cannot be answered."""
    path = job_file("greedy", on_error={"max_error_rate": 0.5})
    bad = '{"text": "no end\n{"other": 1}\n' + json.dumps({"text": "word " * 400, "number": 99}) + "\n"
    s3.write_bytes("s3://rayferry/e2e/greedy/in/bad.jsonl", bad.encode())
    return run("submit", path, "--submission-id", "greedy-1")


@pytest.fixture(scope="session")
def late_job(job_file):
    """A job that its own `timeout` ended."""
    return run("submit", job_file("late", timeout="25s", **LONG), "--submission-id", "late")


@pytest.fixture(scope="session")
def too_many_errors(job_file, checkpoints):
    """A finished job of three rows, one of which is too long to be classified."""
    texts = [{"text": "a good film"}, {"text": "word " * 400}, {"text": "a bad one"}]
    uri = "s3://rayferry/e2e/errors/rows/"
    path = job_file(
        "errors",
        task="classify",
        model=str(checkpoints / "classifier"),
        input={"uri": uri},
        sampling={},
        engine={"max_model_len": 128, "dtype": "float32", "enforce_eager": True},
    )
    s3.write_bytes(f"{uri}rows.jsonl", "\n".join(map(json.dumps, texts)).encode())
    return run("submit", path, "--submission-id", "errors")


@pytest.fixture(scope="session", autouse=True)
def losing(request):
    """Commands that lose contact for good. They give up after two minutes, so they start before all other tests."""
    if not any("lost" in item.fixturenames for item in request.session.items):
        yield {}
        return
    head = urlsplit(request.getfixturevalue("stack").address)
    proxy = FaultProxy((head.hostname, head.port), 0, num_faults=0)
    path = request.getfixturevalue("job_file")("lost", **LONG)
    left = {}
    try:
        left["submit"] = follow("submit", path, "--address", proxy.url, "--submission-id", "lost")
        left["logs -f"] = follow("logs", "-f", "lost", "--address", proxy.url)
        proxy.leave()
        assert run("stop", "lost").returncode == 0
        yield left
    finally:
        proxy.close()
        for process in left.values():
            process.kill()


@pytest.fixture(scope="session")
def lost(losing):
    """How they ended."""
    return {words: end_of(process, 200) for words, process in losing.items()}


@pytest.fixture(scope="session")
def checkpoints(model, tmp_path_factory):
    """Folder of small checkpoints: classifier/, scorer/, lora-a/, lora-b/."""
    folder = tmp_path_factory.mktemp("checkpoints")
    script = [sys.executable, HERE / "tiny_models.py", model, folder]
    subprocess.run(list(map(str, script)), check=True, capture_output=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    return folder


@pytest.fixture(scope="session", autouse=True)
def references(request, model, tmp_path_factory):
    """What vLLM itself answers, by the name of the fixture that gives it: futures.

    One after the other in a thread, beside the jobs: all of them spend their time starting an engine on one core.
    """
    asked = {name for item in request.session.items for name in item.fixturenames}
    batch, embed = tmp_path_factory.mktemp("batch"), tmp_path_factory.mktemp("embed")
    chats, completions = batches.generating(model, PROMPTS, MAX_TOKENS)
    order = {"model": model, "engine": ENGINE, "prompts": PROMPTS, "max_tokens": MAX_TOKENS}
    ways = {
        "same_engine": lambda: run_script("in_one_process.py", given=json.dumps(order)),
        "chats_by_run_batch": lambda: batches.run_batch(chats, batch, model),
        "completions_by_server": lambda: batches.ask_server(completions, batch, model),
        "embedded_by_run_batch": lambda: batches.run_batch(
            batches.embedding(model), embed, model, "--runner", "pooling"
        ),
    }
    with ThreadPoolExecutor(1) as pool:
        yield {name: pool.submit(way) for name, way in ways.items() if name in asked}
        pool.shutdown(cancel_futures=True)


def run_script(name, *arguments, given=None):
    """Runs a script beside this file, in a process of its own; gives the JSON of its last line."""
    environ = os.environ | batches.ENVIRON | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, [HERE / name, *arguments])]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False, env=environ)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def same_engine(references):
    """What LLMPredictor and `vllm.LLM.generate` answer in one process, with the texts of the greedy job."""
    return references["same_engine"].result()


@pytest.fixture(scope="session")
def chats_by_run_batch(references):
    """What vLLM's run_batch answers to chat lines, by custom_id."""
    return references["chats_by_run_batch"].result()


@pytest.fixture(scope="session")
def completions_by_server(references):
    """What vLLM's server answers to completion lines, by custom_id."""
    return references["completions_by_server"].result()


@pytest.fixture(scope="session")
def embedded_by_run_batch(references):
    """What vLLM's run_batch answers to embedding lines, by custom_id."""
    return references["embedded_by_run_batch"].result()


@pytest.fixture(scope="session")
def embedded(model, job_file):
    """What Rayferry answers to the same embedding lines, by custom_id."""
    return batches.run_rayferry("openai-embed", batches.embedding(model), job_file, run, task="embed")
