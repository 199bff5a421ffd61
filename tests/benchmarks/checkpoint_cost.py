"""What it costs to keep in mind what is done: the same run with and without, the engine a stub at 2,000 rows a second.

Without: no lease, no records beside the parts, no batch told to the board before and after it ran. Each round runs
both, taking turns at being first, and prints a RESULT line with the seconds and their ratio.

    python tests/benchmarks/checkpoint_cost.py --rows 40000 --rounds 4
"""

import argparse
import contextlib
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import own_stack
import ray
from pipeline import AtOnce, write_rows

from rayferry.job import checkpoint, pipeline, sink
from rayferry.job.predictor import LLMPredictor
from rayferry.job.spec import parse

ROWS_PER_S = 2000
MOST_PER_STEP = 200


class Steady(AtOnce):
    """Answers so many rows a second."""

    def step(self):
        done, self._ready = self._ready[:MOST_PER_STEP], self._ready[MOST_PER_STEP:]
        time.sleep(len(done) / ROWS_PER_S)
        return done


class Replica(LLMPredictor):
    """LLMPredictor with that engine."""

    def _load(self, spec, device):
        return Steady()


class Forgetful(Replica):
    """Tells nobody which batches run."""

    async def __call__(self, table):
        return self._answers.add_to(table, await self._outcomes(table))


class NoRecords(sink.PartsDatasink):
    """Writes parts alone."""

    def write(self, blocks, ctx):
        read, write = checkpoint.Record.read, checkpoint.Record.write
        checkpoint.Record.read, checkpoint.Record.write = (lambda _uri: None), (lambda _record, _uri: None)
        try:
            return super().write(blocks, ctx)
        finally:
            checkpoint.Record.read, checkpoint.Record.write = read, write


ray.cloudpickle.register_pickle_by_value(sys.modules["pipeline"])
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def run(source, target, *, keeps):
    """Seconds of one run."""
    job = {
        "model": "none",
        "input": {"uri": source},
        "output": {"uri": target, "rows_per_part": 1000},
        "sampling": {"max_tokens": 16},
    }
    before = sink.PartsDatasink, pipeline.Lease
    if not keeps:
        sink.PartsDatasink = NoRecords
        pipeline.Lease = lambda *_args, **_options: contextlib.nullcontext()
    start = time.monotonic()
    try:
        pipeline.run(parse(job, "job"), "bench", predictor=Replica if keeps else Forgetful)
    finally:
        sink.PartsDatasink, pipeline.Lease = before
    return time.monotonic() - start


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()

    def measure(folder, stack):
        ray.init(stack.gcs_address, logging_level="ERROR")
        write_rows(folder / "in", options.rows, 100)
        ratios = []
        for at in range(-1, options.rounds):  # the first warms up
            order = (True, False) if at % 2 == 0 else (False, True)
            target = f"s3://rayferry/bench/{at}"
            seconds = {keeps: run(f"{folder}/in/", f"{target}-{keeps}/", keeps=keeps) for keeps in order}
            ratio = seconds[True] / seconds[False]
            line = f"with={seconds[True]:.2f}s without={seconds[False]:.2f}s ratio={ratio:.3f}"
            print(f"RESULT checkpoint {'first' if at < 0 else 'round'} {line}", flush=True)
            ratios += [ratio] if at >= 0 else []
        print(f"RESULT checkpoint rows={options.rows} median ratio={statistics.median(ratios):.3f}", flush=True)
        ray.shutdown()

    own_stack.run_on_stack(measure)


if __name__ == "__main__":
    main()
