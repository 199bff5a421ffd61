"""How soon a large run goes on: ten million rows are done, a thousand are not, and every file has some of them.

The records of what is done are written directly, as write tasks write them; the engine is a stub. Prints a RESULT line:
seconds from the start of the job to the first new row at a replica and to the manifest, and the driver's peak memory.

    python tests/benchmarks/resume.py --rows 10000000 --rows-per-part 1000
    python tests/benchmarks/resume.py --rows 10000000 --rows-per-part 1000 --s3     all of it on the local stack's S3
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import own_stack
import ray
from pipeline import AtOnce

from rayferry.job import attempts, checkpoint, identity, pipeline, storage
from rayferry.job.checkpoint import Record
from rayferry.job.earlier import Earlier
from rayferry.job.layout import Layout
from rayferry.job.look import look
from rayferry.job.predictor import LLMPredictor
from rayferry.job.spec import parse

NUM_FILES = 100
LEFT_PER_FILE = 10


def leave(mark):
    """Notes the time, once."""
    if not mark.exists():
        mark.write_text(str(time.time()))


class Replica(LLMPredictor):
    """With a stub of an engine; the first batch leaves a mark."""

    def _load(self, spec, device):
        return AtOnce()

    async def __call__(self, table):
        if table.num_rows:
            leave(Path(self._spec.model))
        return await super().__call__(table)


ray.cloudpickle.register_pickle_by_value(sys.modules["pipeline"])
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def write_earlier(spec, rows_per_file, rows_per_part):
    """The input, and what an attempt left that did all but some rows of each file."""
    root = spec.input.uris[0]
    with ThreadPoolExecutor(16) as threads:
        texts = [
            "".join(f"prompt {row} of file {at}\n" for row in range(rows_per_file)).encode() for at in range(NUM_FILES)
        ]
        list(threads.map(lambda at: storage.write_bytes(f"{root}{at:03d}.txt", texts[at]), range(NUM_FILES)))
        layout, found = Layout(spec.output.uri), look(spec)
        asked = identity.asked(identity.settings(spec), found.files) | {"weights": []}
        further = {"columns": found.columns.to_json(), "openai": found.openai, "device": "cpu"}
        checkpoint.begin(layout, "run-1", None, asked | further)
        scheme = "s3://" if root.startswith("s3://") else ""
        checkpoint.save_files(layout, "run-1", {file.path: rows_per_file for file in found.files})
        records = []
        for file in found.files:
            for start in range(0, rows_per_file - LEFT_PER_FILE, rows_per_part):
                stop = min(start + rows_per_part, rows_per_file - LEFT_PER_FILE)
                uri = f"{layout.data_uri}run-1-{len(records):06d}-0000.parquet"
                tokens = {"num_input_tokens": 3, "num_generated_tokens": 1}
                part = {"uri": uri, "kind": "data", "num_rows": stop - start, "num_bytes": 1, "sha256": "0" * 64}
                records.append(Record([part | tokens], {scheme + file.path: [[start, stop]]}))
        uris = [attempts.record_uri(layout, "run-1", at) for at in range(len(records))]
        list(threads.map(lambda record, uri: record.write(uri), records, uris))
        list(threads.map(lambda record: storage.write_bytes(record.parts[0]["uri"], b"x"), records))  # looked for only
    return len(records)


def measure(place, folder, num_rows, rows_per_part):
    """Resumes such a run."""
    mark = folder / "first"
    job = {
        "model": str(mark),
        "input": {"uri": f"{place}in/"},
        "output": {"uri": f"{place}out/", "rows_per_part": rows_per_part},
        "sampling": {"max_tokens": 1},
    }
    spec = parse(job, "job")
    num_records = write_earlier(spec, num_rows // NUM_FILES, rows_per_part)
    before_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.time()
    done = pipeline.run(spec, "run-2", predictor=Replica, earlier=Earlier(resume=True))
    end = time.time()
    assert done["counts"]["total"] == num_rows, done["counts"]
    result = {
        "rows": num_rows,
        "left": NUM_FILES * LEFT_PER_FILE,
        "records": num_records,
        "first_new_row_s": round(float(mark.read_text()) - start, 1),
        "whole_s": round(end - start, 1),
        "driver_peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "of_which_before_mib": round(before_mib),
    }
    print("RESULT resume", json.dumps(result), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--rows-per-part", type=int, default=1000)
    parser.add_argument("--s3", action="store_true")
    options = parser.parse_args()
    if options.s3:

        def run(folder, stack):
            ray.init(stack.gcs_address, logging_level="ERROR")
            measure("s3://rayferry/resume/", folder, options.rows, options.rows_per_part)
            ray.shutdown()

        own_stack.run_on_stack(run)
        return
    with tempfile.TemporaryDirectory() as folder:
        ray.init("local", num_gpus=1, include_dashboard=False, logging_level="ERROR")
        measure(f"{folder}/", Path(folder), options.rows, options.rows_per_part)


if __name__ == "__main__":
    main()
