"""The installed `rayferry` command, the demo model, and jobs that several tests look at."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rayferry.submit import s3
from rayferry.submit.local.model import demo_model

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
COMMAND = str(Path(sys.executable).parent / "rayferry")


def run(*arguments):
    """Runs the installed command to its end, away from the checkout."""
    return subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, cwd="/")


@pytest.fixture
def rayferry(stack):
    """The installed command, pointed at the session's stack."""
    return run


@pytest.fixture
def command():
    """Its path."""
    return COMMAND


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
def same_engine(model):
    """What LLMPredictor and `vllm.LLM.generate` answer in one process, with the texts of the job above."""
    script = Path(__file__).with_name("in_one_process.py")
    order = json.dumps({"model": model, "engine": ENGINE, "prompts": PROMPTS, "max_tokens": MAX_TOKENS})
    done = subprocess.run(
        [sys.executable, str(script)],
        input=order,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def embedded(model, job_file, tmp_path_factory):
    """The same lines for embeddings as Rayferry and as run_batch answer them, by custom_id."""
    lines = batches.embedding(model)
    ours = batches.run_rayferry("openai-embed", lines, job_file, run, task="embed")
    return ours, batches.run_batch(lines, tmp_path_factory.mktemp("embed"), model, "--runner", "pooling")
