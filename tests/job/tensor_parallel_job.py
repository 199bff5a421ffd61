"""Runs the pipeline with tensor_parallel_size=2 and two replicas on a Ray of its own with four logical GPUs.

One replica's process ends in its first batch. Then it runs once more with two engines that share one GPU, and both
again with a Ray Data that has no place for a group, as Ray 2.64 will have none.

usage: tensor_parallel_job.py FOLDER    prints one JSON line: what each replica saw, and the groups left at the end
"""

import asyncio
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

import ray
from ray.data import Dataset
from ray.util import get_current_placement_group, placement_group_table

from rayferry.job import pipeline
from rayferry.job.answers import Answers
from rayferry.job.spec import parse

REPLICAS = 2
KIND = "H100"
MAP_BATCHES = Dataset.map_batches
NAMED = set()  # the further arguments that it got, without a place for groups
WAIT_S = 60.0


class Replica:
    """Answers nothing but where it runs, and that only once the other replica has come to a batch, too."""

    def __init__(self, spec, device, progress, openai, **_options):
        self._answers = Answers(spec, openai=openai)
        self._folder = Path(spec.output.uri).parent
        progress.replica_ready.remote(load_s=0.0, vllm="none")

    def _num_answering(self):
        return len(list(self._folder.glob("answers-*")))

    async def __call__(self, table):
        mark = self._folder / "died"
        if not mark.exists():
            mark.touch()
            os._exit(1)
        (self._folder / f"answers-{os.getpid()}").touch()
        deadline = time.monotonic() + WAIT_S
        while self._num_answering() < REPLICAS and time.monotonic() < deadline:  # noqa: ASYNC110  # another process
            await asyncio.sleep(0.1)
        told = {"gpus": ray.get_gpu_ids()}
        if group := get_current_placement_group():
            seen = placement_group_table(group)
            told |= {"group": group.id.hex(), "bundles": list(seen["bundles"].values()), "strategy": seen["strategy"]}
        answered = self._answers.add_to(table, [None] * table.num_rows)
        index = answered.schema.get_field_index("generated_text")
        return answered.set_column(index, "generated_text", [[json.dumps(told, sort_keys=True)] * table.num_rows])


class Sharer(Replica):
    """One of two on a GPU."""

    def __init__(self, spec, device, progress, openai, **_options):
        self._answers = Answers(spec, openai=openai)
        self._folder = Path(spec.output.uri).parent
        progress.replica_ready.remote(load_s=0.0, vllm="none")

    async def __call__(self, table):
        (self._folder / f"answers-{os.getpid()}").touch()
        deadline = time.monotonic() + WAIT_S
        while self._num_answering() < REPLICAS and time.monotonic() < deadline:  # noqa: ASYNC110  # another process
            await asyncio.sleep(0.1)
        resources = ray.get_runtime_context().get_assigned_resources()
        told = {"pid": os.getpid(), "gpus": resources["GPU"], "which": os.environ["CUDA_VISIBLE_DEVICES"]}
        answered = self._answers.add_to(table, [None] * table.num_rows)
        index = answered.schema.get_field_index("generated_text")
        return answered.set_column(index, "generated_text", [[json.dumps(told, sort_keys=True)] * table.num_rows])


def carry_out(folder, predictor, **changes):
    """What the rows of a job in that folder say, each thing once, and how many say it."""
    (folder / "in").mkdir(parents=True)
    for number in range(8):
        (folder / "in" / f"{number}.txt").write_text("a prompt\n" * 4)
    places = {"input": {"uri": str(folder / "in")}, "output": {"uri": str(folder / "out")}}
    changes["resources"] = {"accelerator_type": KIND} | changes.get("resources", {})
    pipeline.run(parse({"model": "none", "batch_size": 2} | places | changes, "job"), "groups", predictor)
    import pyarrow.parquet as pq

    rows = [row for part in (folder / "out/data").iterdir() for row in pq.read_table(part).to_pylist()]
    told = Counter(row["generated_text"] for row in rows)
    return sorted(map(json.loads, told), key=str), list(told.values())


def map_batches_of_2_64(self, fn, *, batch_size, batch_format, fn_constructor_kwargs, compute, **named):
    """`Dataset.map_batches` without what Ray will take away."""
    NAMED.update(named)
    named |= {"fn_constructor_kwargs": fn_constructor_kwargs, "compute": compute}
    return MAP_BATCHES(self, fn, batch_size=batch_size, batch_format=batch_format, **named)


def main():
    folder = Path(sys.argv[1])
    kinds = {f"accelerator_type:{KIND}": 1}
    ray.init("local", num_cpus=8, num_gpus=4, resources=kinds, include_dashboard=False, log_to_driver=False)
    parallel = {"engine": {"tensor_parallel_size": 2}, "replicas": REPLICAS}
    told, rows = carry_out(folder / "groups", Replica, **parallel)
    shared, rows_shared = carry_out(folder / "shared", Sharer, resources={"engines_per_gpu": 2})
    states = [group["state"] for group in placement_group_table().values()]
    Dataset.map_batches = map_batches_of_2_64
    later, _ = carry_out(folder / "later", Replica, **parallel)
    shared_later, _ = carry_out(folder / "shared-later", Sharer, resources={"engines_per_gpu": 2})
    result = {"rows": rows, "told": told, "states": states, "shared": shared, "rows_shared": rows_shared}
    result |= {"later": later, "shared_later": shared_later, "named": sorted(NAMED)}
    result["groups_later"] = len(placement_group_table()) - len(states)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
