"""OpenAI batch lines, and what Rayferry, vLLM's run_batch and vLLM's server answer to them."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress

import psutil

from rayferry.submit import collect, s3
from rayferry.submit.local.ports import free_ports

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}

CAPITALS = [("France", "Paris"), ("Italy", "Rome"), ("Japan", "Tokyo")]


def lines_of(kind, url, bodies, model):
    return [
        {"custom_id": f"{kind}-{at}", "method": "POST", "url": url, "body": {"model": model} | body}
        for at, body in enumerate(bodies)
    ]


def embedding(model):
    bodies = [{"input": "a small dog"}, {"input": ["a large cat", "the blue sea"]}, {"input": [504, 3575, 282]}]
    return lines_of("embedding", "/v1/embeddings", bodies, model)


def chat(content, **body):
    return {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 16} | body


def generating(model, prompts, max_tokens):
    """Chat lines, and completion lines of which the last are `prompts`."""
    chats = [
        *(chat(f"What is the capital of {country}?") for country, _ in CAPITALS),
        chat("Count to ten.", max_tokens=8, stop=["three"]),
        chat("Tell me a story.", max_completion_tokens=5, logprobs=True, top_logprobs=2),
        chat("Describe a person.", max_tokens=60, response_format={"type": "json_schema", "json_schema":
             {"name": "person", "schema": SCHEMA}}),
        {"messages": [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": "Sky colour?"}],
         "temperature": 0, "max_tokens": 8, "seed": 3},
        chat("No limit: say yes.", max_tokens=None, stop=["\n", "."]),
    ]  # fmt: skip
    completions = [
        {"prompt": "The capital of France is", "temperature": 0, "max_tokens": 6},
        {"prompt": ["Once upon a time", "Water boils at"], "temperature": 0, "max_tokens": 6, "logprobs": 1},
        {"prompt": "One two three", "temperature": 0},
        {"prompt": [504, 3575, 282, 4649, 314], "temperature": 0, "max_tokens": 4},
    ]
    completions += [{"prompt": prompt, "temperature": 0, "max_tokens": max_tokens} for prompt in prompts]
    chat_lines = lines_of("chat", "/v1/chat/completions", chats, model)
    return chat_lines, lines_of("completion", "/v1/completions", completions, model)


def as_jsonl(lines):
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


OPTIONS = ["--enforce-eager", "--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "16"]
OPTIONS += ["--max-num-batched-tokens", "512"]
ENVIRON = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}


def run_batch(lines, folder, model, *options):
    """What vLLM's own command answers, by custom_id. It takes no /v1/completions."""
    (folder / "in.jsonl").write_bytes(as_jsonl(lines))
    command = [sys.executable, "-m", "vllm.entrypoints.openai.run_batch", "-i", folder / "in.jsonl"]
    command += ["-o", folder / "out.jsonl", "--model", model, *OPTIONS, *options]
    command = [str(part) for part in command]
    done = subprocess.run(command, env=os.environ | ENVIRON, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = map(json.loads, (folder / "out.jsonl").read_text().splitlines())
    return {line["custom_id"]: line["response"]["body"] for line in found}


def ask_server(lines, folder, model):
    """What vLLM's own server answers, by custom_id."""
    port = str(free_ports(1)[0])
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--host", "127.0.0.1"]
    log = folder / "server.log"
    with log.open("w") as out:
        server = subprocess.Popen(
            [*command, "--port", port, *OPTIONS], env=os.environ | ENVIRON, stdout=out, stderr=subprocess.STDOUT
        )
        try:
            wait_for(f"http://127.0.0.1:{port}/health", server, log)
            return {line["custom_id"]: post(f"http://127.0.0.1:{port}{line['url']}", line["body"]) for line in lines}
        finally:
            with suppress(psutil.NoSuchProcess):
                for process in psutil.Process(server.pid).children(recursive=True):  # its engine
                    process.kill()
            server.kill()
            server.wait()


def wait_for(url, server, log):
    deadline = time.monotonic() + 900
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-3000:])


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.loads(answer.read())


def run_rayferry(name, lines, job_file, rayferry, **changes):
    """What Rayferry answers, by custom_id."""
    uri = f"s3://rayferry/e2e/{name}/"
    s3.write_bytes(f"{uri}batch/lines.jsonl", as_jsonl(lines))
    place = {"input": {"uri": f"{uri}batch/"}, "output": {"uri": f"{uri}out/", "rows_per_part": 5}, "sampling": {}}
    done = rayferry("submit", job_file(name, **place, **changes))
    assert done.returncode == 0, done.stderr
    parts = [part for part in collect.read_manifest(f"{uri}out/")["parts"] if part["kind"] == "openai"]
    found = [json.loads(line) for part in parts for line in s3.read_bytes(part["uri"]).decode().splitlines()]
    assert all(line["error"] is None for line in found), found
    return {line["custom_id"]: line["response"]["body"] for line in found}
