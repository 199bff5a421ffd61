"""Two engines whose rows were put in another order answer as one `LLM.generate` of all rows as they came."""

import io
import json
import random

import pyarrow.parquet as pq
import pytest

from rayferry.submit import s3

from .conftest import ENGINE, MAX_TOKENS, run, run_script

pytestmark = [pytest.mark.e2e, pytest.mark.chaos]
DOCUMENTS = ["The river runs to the sea, ", "A tower of stone stood on the hill, ", "They sang until the morning, "]


@pytest.fixture(scope="module")
def prompts():
    """Twenty-four prompts, shuffled; each begins with one of three documents, longer than what is compared first."""
    several = [(document * 30)[:600] + f" number {at} is" for document in DOCUMENTS for at in range(8)]
    random.Random(0).shuffle(several)
    return several


def test_two_engines_and_grouped_prompts_give_the_answers_of_one_llm_generate(stack, job_file, model, prompts):
    path = job_file("two-engines", replicas=2)
    lines = [json.dumps({"text": text, "number": number}) for number, text in enumerate(prompts)]
    for number in range(3):
        s3.write_bytes(f"s3://rayferry/e2e/two-engines/in/{number}.jsonl", "\n".join(lines[number::3]).encode())
    done = run("submit", path, "--json")
    assert done.returncode == 0, done.stderr
    uri = json.loads(done.stdout)["output_uri"]
    manifest = json.loads(s3.read_bytes(f"{uri}_meta/manifest.json"))
    assert sum(replica["answered"] for replica in manifest["replicas"]) == len(prompts)
    assert len(manifest["replicas"]) == 2
    parts = [part["uri"] for part in manifest["parts"] if part["kind"] == "data"]
    rows = [row for uri in parts for row in pq.read_table(io.BytesIO(s3.read_bytes(uri))).to_pylist()]
    order = {"model": model, "engine": ENGINE, "prompts": prompts, "max_tokens": MAX_TOKENS}
    theirs = run_script("in_one_process.py", given=json.dumps(order))["generate"]
    ours = [row["generated_text"] for row in sorted(rows, key=lambda row: row["number"])]
    assert ours == [answer["text"] for answer in theirs]
