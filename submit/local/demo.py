"""The whole main job on this machine: real Ray, real S3, real vLLM, real weights."""

import os
import shutil
import sys
import time
from pathlib import Path

from rayferry.job.spec import JobSpec, parse
from rayferry.submit import report, s3
from rayferry.submit.config import Address
from rayferry.submit.local import stack
from rayferry.submit.local.model import demo_model
from rayferry.submit.request import new_submission_id
from rayferry.submit.starter import starter_text

_FILES = 4
_SHOWN = 6


def run_demo(*, keep: bool) -> int:
    """Brings the stack up, runs the bundled prompts through the bundled model, shows some answers.

    What it started it ends, unless `keep`; a stack that was up before stays up.

    Returns:
        The exit code of the run.
    """
    model = demo_model(report.note)
    was_up = stack.find() is not None
    found = stack.up(report.note)
    try:
        for name in stack.CLEARED:
            os.environ.pop(name, None)
        os.environ.update(found.environ())
        code = _run(found, str(model))
    finally:
        if not (keep or was_up):
            report.note("ending the local stack")
            stack.down()
    if code == 0:
        _tell_next(is_up=keep or was_up)
    return code


def _run(found: stack.Stack, model: str) -> int:
    from rayferry.submit import collect, launch  # noqa: PLC0415  # Ray reads the environment when it is imported

    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    root = f"s3://{stack.BUCKET}/demo/{stamp}"
    lines = starter_text("prompts.jsonl").splitlines(keepends=True)
    for number in range(_FILES):
        s3.write_bytes(f"{root}/prompts/{number}.jsonl", "".join(lines[number::_FILES]).encode())
    report.note(f"uploaded {len(lines)} prompts to {root}/prompts/")
    spec = demo_spec(model, f"{root}/prompts/", f"{root}/answers/")
    submission_id = new_submission_id("demo")
    cluster, _ = launch.submit(spec, Address(found.address, "rayferry local"), submission_id)
    code = launch.wait(cluster, submission_id)
    if code == 0:
        rows = collect.preview(spec.output.uri, _SHOWN).select(["prompt", "generated_text"]).to_pylist()
        report.table(["prompt", "generated_text"], [list(row.values()) for row in rows], to_stderr=True)
    return code


def demo_spec(model: str, input_uri: str, output_uri: str) -> JobSpec:
    """The demo's job."""
    return parse(
        {
            "name": "demo",
            "model": model,
            "task": "chat",
            "input": {"uri": input_uri, "id_column": "key"},
            "output": {"uri": output_uri, "rows_per_part": 8},
            "sampling": {"temperature": 0, "max_tokens": 48},
            # small limits: the engine tries itself out at the largest batch that it would run
            "engine": {
                "max_model_len": 1024,
                "max_num_seqs": 32,
                "max_num_batched_tokens": 1024,
                "enforce_eager": True,
            },
            "batch_size": 8,
        },
        "demo",
    )


def _tell_next(*, is_up: bool) -> None:
    report.note("\nNext, a job of your own:")
    if shutil.which("rayferry") is None:
        report.note(f"  . {Path(sys.prefix) / 'bin' / 'activate'}")
    if not is_up:
        report.note("  rayferry local up")
    report.note('  eval "$(rayferry local env)"    # Ray and S3 of this machine; or your own cluster\'s')
    report.note("  rayferry init job.yaml          # then set model, input.uri and output.uri in it")
    report.note("  rayferry submit job.yaml")
