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
)
MAX_ATTEMPTS = 6
ATTEMPT_S = 150.0
_PARTS = 32  # about as many records as a run without faults writes


class Place:
    """Where the runs happen: a cluster of two nodes whose way to S3 leads through the proxy."""

    def __init__(self, proxy, environ):
        self.proxy = proxy
        self._environ = environ | {"AWS_ENDPOINT_URL": proxy.url, "AWS_EC2_METADATA_DISABLED": "true"}
        self._start()

    def _start(self):
        with self.environment():
            head = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 200 << 20}
            self.cluster = _patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
        self.add_node()

    def close(self):
        self.cluster.shutdown()

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
            self.node = _patiently(lambda: self.cluster.add_node(num_cpus=2, object_store_memory=200 << 20))

    def lose_node(self):
        """Its raylet is killed, and its workers end with it; another node comes in its place."""
        _raylet(self.node).kill()
        self.cluster.remove_node(self.node, allow_graceful=False)
        self.add_node()

    def lose_head(self, driver):
        """All of the cluster is gone, and so is the driver, which ran on the head; then there is a new cluster."""
        driver.kill()
        for node in (self.cluster.head_node, self.node):
            _raylet(node).kill()
        self.cluster.shutdown()
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
        command = [sys.executable, str(Path(__file__).with_name("driver.py")), str(spec_path)]
        command += ["--submission-id", submission_id, *(["--resume"] if resume else [])]
        environ = os.environ | self._environ | {"RAY_ADDRESS": self.cluster.address}
        return subprocess.Popen(command, stdout=log, stderr=log, env=environ)


def _patiently(start):
    """A node gets 30 seconds to start from Ray, which is not enough on a busy machine."""
    for _ in range(3):
        with suppress(Exception):
            return start()
    return start()


def _raylet(node):
    return psutil.Process(node.all_processes["raylet"][0].process.pid)


def _parquet(texts, rows_per_group):
    stream = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), stream, row_group_size=rows_per_group)
    return stream.getvalue()


def input_files():
    """Files of most formats, and the ids of their rows."""
    lines = [f"line {at}" if at % 50 else "refuse this" for at in range(700)]
    text = "\n".join(lines).encode() + b"\n\n\xff\xfe bad\n"
    records = [json.dumps({"text": f"record {at}"}) if at % 70 else '{"text": ' for at in range(700)]
    csv = "text,n\n" + "".join(f"field {at},{at}\n" if at % 90 else "short\n" for at in range(500))
    files = {
        "a.txt": (text, [*range(700), 701]),
        "b.jsonl": ("\n".join(records).encode(), range(700)),
        "c.csv": (csv.encode(), range(500)),
        "d.parquet": (_parquet([f"row {at}" if at % 100 else None for at in range(900)], 200), range(900)),
        "e.jsonl.gz": (gzip.compress("\n".join(records[:200]).encode()), range(200)),
    }
    ids = {f"{name}:{position}" for name, (_, positions) in files.items() for position in positions}
    return {name: content for name, (content, _) in files.items()}, ids


class Runs:
    """Runs by their seeds, over one input."""

    def __init__(self, place, endpoint, bucket, folder):
        self._place, self._folder = place, folder
        self._s3 = boto3.client("s3", endpoint_url=endpoint)
        self._bucket = bucket
        files, self._ids = input_files()
        for name, content in files.items():
            self._s3.put_object(Bucket=bucket, Key=f"chaos/in/{name}", Body=content)

    def run(self, seed):
        """Does one run to its end; gives what happened, its defects among them."""
        choice = random.Random(seed)
        begun = time.monotonic()
        main = FAULTS[seed % len(FAULTS)]
        faults = [main] + ([choice.choice(FAULTS)] if choice.random() < 0.35 else [])
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
                driver = self._place.drive(spec_path, f"s{seed}-a{len(codes) + 1}", log, resume=bool(codes))
                try:
                    self._disturb(choice, driver, prefix, moments, happened)
                    codes.append(driver.wait(ATTEMPT_S))
                except subprocess.TimeoutExpired:
                    codes.append("hung")
                finally:
                    driver.kill()
                    driver.wait()
        proxy.calm()
        defects = self._defects(prefix) if codes[-1] == 0 else {"error": f"no end after {codes}; see {log_path}"}
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
            codes = [driver.wait(ATTEMPT_S) for driver in drivers]
        return codes, log_path.read_text(errors="replace")

    def _spec(self, prefix):
        return {
            "model": "stub",
            "input": {"uri": f"s3://{self._bucket}/chaos/in/"},
            "output": {"uri": f"s3://{self._bucket}/{prefix}", "rows_per_part": 100, "preview_rows": 0},
            "batch_size": 25,
            "replicas": 2,
            "resources": {"device": "cpu"},
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
                num_records = self._num_records(prefix) + choice.randrange(_PARTS * 2 // 3)
                self._wait(driver, lambda least=num_records: self._num_records(prefix) >= least)
                time.sleep(choice.uniform(0, 0.3))
            if driver.poll() is not None:
                happened.append(f"{fault}: too late")
                return
            happened.append(fault)
            if self._let_happen(choice, fault, driver, happened):
                return

    def _let_happen(self, choice, fault, driver, happened):
        """True if the driver ends by it."""
        place = self._place
        if fault == "head killed":
            place.lose_head(driver)
        elif fault.startswith("driver killed"):
            driver.kill()
        elif fault == "SIGTERM":
            driver.send_signal(signal.SIGTERM)
        elif fault == "S3 away for seconds":
            place.proxy.away(choice.uniform(2, 12))
            return False
        elif fault == "node's raylet killed":
            place.lose_node()
            return False
        else:
            signs = ("Slow",) if fault == "replica killed" else ("Read", "Write")
            there = place.workers(*signs) or place.workers("IDLE", "Board")
            if there:
                with suppress(psutil.Error):
                    victim = choice.choice(there)
                    happened[-1] += f" ({victim.cmdline()[0][:60]})"
                    victim.kill()
            return False
        return True

    def _wait(self, driver, until):
        deadline = time.monotonic() + ATTEMPT_S
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
