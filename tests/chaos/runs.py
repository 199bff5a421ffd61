"""One run of the real job, and what goes wrong with it: all by a seed."""

import gzip
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import boto3
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from ray.cluster_utils import Cluster

from rayferry.submit.local.ports import free_ports

# what each run is about, in turns; some have a second fault of any kind
FAULTS = (
    "driver killed",
    "replica killed",
    "worker killed",
    "S3: errors, resets, slow bytes",
    "node's raylet killed",
    "driver killed twice",
    "S3: answers to writes lost, puts cut",
    "SIGTERM",
    "S3 away for seconds",
    "head killed",
    "laptop killed",
    "dashboard killed",
)
# the same where the engine is vLLM's own
REAL_FAULTS = (
    "driver killed",
    "replica killed",
    "engine killed",
    "worker killed",
    "S3: errors, resets, slow bytes",
    "node's raylet killed",
    "SIGTERM",
    "head killed",
    "laptop killed",
    "dashboard killed",
)
BY_LAPTOP = {"laptop killed", "dashboard killed"}  # these go through the command and the Jobs API
MAX_ATTEMPTS = 6
_PATIENCE = float(os.environ.get("CHAOS_PATIENCE", "1"))  # more on a machine that others keep busy
ATTEMPT_S = {"stub": 300.0 * _PATIENCE, "vllm": 400.0 * _PATIENCE}
_HERE = Path(__file__).parent
_ROWS_PER_PART = 100


class Place:
    """Where the runs happen: a cluster of two nodes whose way to S3 leads through the proxy."""

    def __init__(self, proxy, environ, engine="stub", gpus=0):
        self.proxy, self.engine, self.gpus = proxy, engine, gpus
        self._of_laptop = environ | {"AWS_EC2_METADATA_DISABLED": "true", "CHAOS_ENGINE": engine}
        of_vllm = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
        self._environ = self._of_laptop | of_vllm | {"AWS_ENDPOINT_URL": proxy.url}
        self._of_node = {"num_cpus": 2, "num_gpus": gpus, "object_store_memory": 200 << 20}
        self._port, self._agents_port = free_ports(2)  # jobs come through both; Ray's own are others' too
        self.url = f"http://127.0.0.1:{self._port}"
        self._dashboard = None
        self._start()

    def _start(self):
        with self.environment():
            head = self._of_node | {"num_gpus": 0, "include_dashboard": True, "dashboard_host": "127.0.0.1"}
            head |= {"dashboard_port": self._port, "dashboard_agent_listen_port": self._agents_port}
            self.cluster = _patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
            self._dashboard = psutil.Process(self.cluster.head_node.all_processes["dashboard"][0].process.pid)
        self.add_node()

    def close(self):
        _end(self._dashboard)
        self.cluster.shutdown()

    def lose_dashboard(self, seconds):
        """It is killed, and started again after so long."""
        command, environ = self._dashboard.cmdline(), self._dashboard.environ()
        _end(self._dashboard)
        time.sleep(seconds)
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._dashboard = psutil.Process(subprocess.Popen(command, env=environ, **quiet).pid)

    @contextmanager
    def environment(self):
        before = dict(os.environ)
        os.environ.update(self._environ)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)

    def add_node(self):
        with self.environment():
            self.node = _patiently(lambda: self.cluster.add_node(**self._of_node))

    def lose_node(self):
        """Its raylet is killed, and its workers end with it; another node comes in its place."""
        _raylet(self.node).kill()
        self.cluster.remove_node(self.node, allow_graceful=False)
        self.add_node()

    def lose_head(self):
        """All of the cluster is gone; then there is a new one."""
        for node in (self.cluster.head_node, self.node):
            _raylet(node).kill()
        self.close()
        self._start()

    def workers(self, *signs):
        """Processes of tasks and actors with one of the signs in their title."""
        found = []
        for node in (self.cluster.head_node, self.node):
            with suppress(psutil.Error):
                for process in _raylet(node).children(recursive=True):
                    title = " ".join(process.cmdline())
                    if title.startswith("ray::") and any(sign in title for sign in signs):
                        found.append(process)
        return found

    def drive(self, spec_path, submission_id, log, *, resume):
        """An attempt of a run, as a process of its own."""
        command = [sys.executable, str(_HERE / "driver.py"), str(spec_path)]
        command += ["--submission-id", submission_id, *(["--resume"] if resume else [])]
        environ = os.environ | self._environ | {"RAY_ADDRESS": self.cluster.address}
        return subprocess.Popen(command, stdout=log, stderr=log, env=environ)

    def command(self, words, log):
        """A command of a laptop, as a process of its own; its way to S3 is without faults."""
        environ = os.environ | self._of_laptop | {"RAY_API_SERVER_ADDRESS": self.url}
        return subprocess.Popen([sys.executable, str(_HERE / "laptop.py"), *words], stdout=log, stderr=log, env=environ)

    def driver(self):
        """The driver that the Jobs API started, if one is there."""
        for process in _raylet(self.cluster.head_node).children(recursive=True):
            with suppress(psutil.Error):
                if process.cmdline()[1:2] == [str(_HERE / "driver.py")]:
                    return process
        return None


def _patiently(start):
    """A node gets 30 seconds to start from Ray, which is not enough on a busy machine.

    What a start that failed leaves is ended, as it holds the ports.
    """
    for _ in range(3):
        before = set(psutil.Process().children())  # its own alone: workers of nodes that are up come and go meanwhile
        with suppress(Exception):
            return start()
        for process in set(psutil.Process().children()) - before:
            _end(process)
    return start()


def _raylet(node):
    return psutil.Process(node.all_processes["raylet"][0].process.pid)


def _end(process):
    """Kills a process and its children."""
    with suppress(psutil.Error):
        for one in [*process.children(recursive=True), process]:
            with suppress(psutil.Error):
                one.kill()


def _parquet(texts, rows_per_group):
    stream = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), stream, row_group_size=rows_per_group)
    return stream.getvalue()


def input_files(part=1):
    """Files of most formats, and the ids of their rows: 3,001, or so small a part of them."""
    most = {
        name: num // part for name, num in {"text": 700, "jsonl": 700, "csv": 500, "parquet": 900, "gz": 200}.items()
    }
    lines = [f"line {at}" if at % 50 else "refuse this" for at in range(most["text"])]
    text = "\n".join(lines).encode() + b"\n\n\xff\xfe bad\n"
    records = [json.dumps({"text": f"record {at}"}) if at % 70 else '{"text": ' for at in range(most["jsonl"])]
    csv = "text,n\n" + "".join(f"field {at},{at}\n" if at % 90 else "short\n" for at in range(most["csv"]))
    texts = [f"row {at}" if at % 100 else None for at in range(most["parquet"])]
    files = {
        "a.txt": (text, [*range(most["text"]), most["text"] + 1]),
        "b.jsonl": ("\n".join(records).encode(), range(most["jsonl"])),
        "c.csv": (csv.encode(), range(most["csv"])),
        "d.parquet": (_parquet(texts, 200), range(most["parquet"])),
        "e.jsonl.gz": (gzip.compress("\n".join(records[: most["gz"]]).encode()), range(most["gz"])),
    }
    ids = {f"{name}:{position}" for name, (_, positions) in files.items() for position in positions}
    return {name: content for name, (content, _) in files.items()}, ids


class Runs:
    """Runs by their seeds, over one input."""

    def __init__(self, place, endpoint, bucket, folder, model="stub"):
        self._place, self._folder, self._model = place, folder, model
        self._faults = REAL_FAULTS if place.engine == "vllm" else FAULTS
        self._attempt_s = ATTEMPT_S[place.engine]
        self._s3 = boto3.client("s3", endpoint_url=endpoint)
        self._bucket = bucket
        is_slow = place.engine == "vllm" and not place.gpus
        files, self._ids = input_files(4 if is_slow else 1)
        for name, content in files.items():
            self._s3.put_object(Bucket=bucket, Key=f"chaos/in/{name}", Body=content)

    def run(self, seed):
        """Does one run to its end; gives what happened, its defects among them."""
        choice = random.Random(seed)
        begun = time.monotonic()
        main = self._faults[seed % len(self._faults)]
        others = [fault for fault in self._faults if fault not in BY_LAPTOP]
        faults = [main] + ([choice.choice(others)] if choice.random() < 0.35 else [])
        prefix = f"chaos/out-{seed}-{os.getpid()}-{time.time_ns()}/"
        spec_path = self._folder / f"{seed}.json"
        spec_path.write_text(json.dumps(self._spec(prefix)))
        proxy = self._place.proxy
        proxy.storm(seed, 0.0)
        for fault in faults:
            if fault.startswith("S3: errors"):
                proxy.storm(seed, choice.uniform(0.02, 0.2), ("503", "500", "reset", "slow"))
            elif fault.startswith("S3: answers"):
                proxy.storm(seed, choice.uniform(0.02, 0.15), ("lost answer", "cut put"))
        moments = [fault for fault in faults if not fault.startswith("S3: ")]
        moments += [fault for fault in moments if fault.endswith("twice")]
        log_path = self._folder / f"{seed}.log"
        codes, happened = [], []
        with log_path.open("wb") as log:
            while len(codes) < MAX_ATTEMPTS and 0 not in codes:
                if main in BY_LAPTOP:
                    driver = self._place.command(self._words(spec_path, f"s{seed}", codes, prefix), log)
                else:
                    driver = self._place.drive(spec_path, f"s{seed}-a{len(codes) + 1}", log, resume=bool(codes))
                try:
                    self._disturb(choice, driver, prefix, moments, happened)
                    codes.append(driver.wait(self._attempt_s))
                except subprocess.TimeoutExpired:
                    codes.append("hung")
                finally:
                    driver.kill()
                    driver.wait()
        proxy.calm()
        if codes[-1] == 0:
            defects = self._defects(prefix)
        else:
            said = [line for line in log_path.read_text(errors="replace").splitlines() if "error: " in line]
            defects = {"error": f"no end after {codes}", "said": said[-MAX_ATTEMPTS:], "keys": self._keys(prefix)}
        return {
            "seed": seed,
            "fault": main,
            "further": faults[1:],
            "happened": happened,
            "s3_faults": dict(proxy.done),
            "attempts": len(codes),
            "codes": codes,
            "rows": len(self._ids),
            "seconds": round(time.monotonic() - begun, 1),
            "defects": defects,
        }

    def at_once(self, *names):
        """Starts one run by several drivers; gives their exit codes, and what they said."""
        spec_path, log_path = self._folder / "at-once.json", self._folder / "at-once.log"
        spec_path.write_text(json.dumps(self._spec(f"chaos/out-at-once-{time.time_ns()}/")))
        with log_path.open("wb") as log:
            drivers = [self._place.drive(spec_path, name, log, resume=False) for name in names]
            codes = [driver.wait(self._attempt_s) for driver in drivers]
        return codes, log_path.read_text(errors="replace")

    def _words(self, spec_path, name, codes, prefix):
        """What a person types first; after a laptop that died; and after a run that failed, or never began."""
        if codes == [-signal.SIGKILL]:
            return ["logs", "-f", f"{name}-0"]
        if self._keys(f"{prefix}_meta/run.json"):
            return ["resume", json.loads(spec_path.read_text())["output"]["uri"]]
        return ["submit", str(spec_path), "--submission-id", f"{name}-{len(codes)}"]

    def _spec(self, prefix):
        engine = {"max_model_len": 128, "enforce_eager": True, "max_num_seqs": 32}
        engine |= {"gpu_memory_utilization": 0.3} if self._place.gpus else {"dtype": "float32"}  # lanes share a GPU
        return {
            "model": self._model,
            **({"engine": engine, "sampling": {"max_tokens": 4}} if self._place.engine == "vllm" else {}),
            "input": {"uri": f"s3://{self._bucket}/chaos/in/"},
            "output": {"uri": f"s3://{self._bucket}/{prefix}", "rows_per_part": _ROWS_PER_PART, "preview_rows": 0},
            "batch_size": 25,
            "replicas": 1 if self._place.engine == "vllm" else 2,
            "resources": {"device": "gpu" if self._place.gpus else "cpu"},
            "retry": {"max_attempts": 4},
        }

    def _disturb(self, choice, driver, prefix, moments, happened):
        """Lets the next faults happen, each some time into the attempt; one that ends the attempt is its last."""
        start = time.monotonic()
        while moments:
            fault = moments.pop(0)
            if choice.random() < 0.15:
                moment = start + choice.uniform(0, 6)
                self._wait(driver, lambda moment=moment: time.monotonic() > moment)
            else:
                num_records = self._num_records(prefix) + choice.randrange(len(self._ids) * 2 // 3 // _ROWS_PER_PART)
                self._wait(driver, lambda least=num_records: self._num_records(prefix) >= least)
                time.sleep(choice.uniform(0, 0.3))
            if driver.poll() is not None:
                happened.append(f"{fault}: too late")
                return
            happened.append(fault)
            if self._let_happen(choice, fault, driver, happened):
                return

    def _let_happen(self, choice, fault, process, happened):
        """True if the process of this attempt ends by it."""
        place = self._place
        by_laptop = str(_HERE / "laptop.py") in process.args
        if fault == "laptop killed":
            process.kill()
            return True
        if fault in {"head killed", "SIGTERM"} or fault.startswith("driver killed"):
            driver = place.driver() if by_laptop else process
            if driver is not None:
                driver.send_signal(signal.SIGTERM if fault == "SIGTERM" else signal.SIGKILL)
            else:
                happened[-1] += " (nothing there)"
            if fault == "head killed":
                place.lose_head()
            return not by_laptop
        if fault == "dashboard killed":
            place.lose_dashboard(choice.uniform(0, 5))
        elif fault == "S3 away for seconds":
            place.proxy.away(choice.uniform(2, 12))
        elif fault == "node's raylet killed":
            place.lose_node()
        else:
            happened[-1] += self._kill_one(choice, fault)
        return False

    def _kill_one(self, choice, fault):
        """Kills a replica, its engine or a worker; gives its title."""
        signs = ("Read", "Write") if fault == "worker killed" else ("Slow", "LLMPredictor")
        there = self._place.workers(*signs) or self._place.workers("IDLE", "Board")
        with suppress(psutil.Error, IndexError):
            victim = choice.choice(there)
            if fault == "engine killed":
                inner = [child for child in victim.children() if "EngineCore" in " ".join(child.cmdline())]
                victim = (inner or [victim])[0]
            title = " ".join(victim.cmdline())[:60]
            victim.kill()
            return f" ({title})"
        return " (nothing there)"

    def _wait(self, driver, until):
        deadline = time.monotonic() + self._attempt_s
        while driver.poll() is None and not until() and time.monotonic() < deadline:
            time.sleep(0.1)

    def _keys(self, prefix):
        pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
        return [found["Key"] for page in pages for found in page.get("Contents", ())]

    def _num_records(self, prefix):
        return len(self._keys(f"{prefix}_meta/checkpoint/"))

    def _content(self, key):
        return self._s3.get_object(Bucket=self._bucket, Key=key)["Body"].read()

    def _defects(self, prefix):
        """What is wrong with an output; empty if it is exact."""
        manifest = json.loads(self._content(f"{prefix}_meta/manifest.json"))
        root = f"s3://{self._bucket}/"
        listed = {part["uri"].removeprefix(root): part for part in manifest["parts"]}
        folders = [f"{prefix}{name}/" for name in ("data", "errors", "openai")]
        # Arrow leaves an empty object in the folder's name where it removed a file
        there = {key for folder in folders for key in self._keys(folder) if key != folder}
        found = {"missing parts": sorted(listed.keys() - there), "unlisted parts": sorted(there - listed.keys())}
        ids, counts, wrong = Counter(), Counter(), []
        for key in sorted(listed.keys() & there):
            content, part = self._content(key), listed[key]
            table = pq.read_table(io.BytesIO(content))
            if (hashlib.sha256(content).hexdigest(), table.num_rows) != (part["sha256"], part["num_rows"]):
                wrong.append(key)
            counts[part["kind"]] += table.num_rows
            ids.update(table.column("id").to_pylist())
        expected = {"total": len(self._ids), "succeeded": counts["data"], "failed": counts["errors"]}
        found["parts unlike the manifest"] = wrong
        found["lost"] = sorted(self._ids - ids.keys())
        found["twice"] = sorted(name for name, times in ids.items() if times > 1)
        found["unknown"] = sorted(ids.keys() - self._ids)
        found["counts"] = [] if manifest["counts"] == expected else [manifest["counts"], expected]
        if self._keys(f"{prefix}_meta/lease"):
            found["lease"] = ["still there"]
        return {name: several for name, several in found.items() if several}
