"""What Ray Data's own CheckpointConfig holds, beside our records: kills, and ten million ids that are done.

usage: ray_checkpoint.py kills [SEEDS]       a run of 20,000 rows is killed at a random moment, its driver or one of its
                                             workers, and resumed; which ids are lost or twice, and what is left over
       ray_checkpoint.py memory [ROWS]       a run of which all but 1,000 rows are done (written directly); seconds to
                                             the first new row, and the peak of all processes' memory (PSS)

The pipeline is Ray Data's: read_parquet, map_batches of an actor, write_parquet. Prints RESULT lines.
"""

import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray

sys.path.insert(0, str(Path(__file__).parent))

from pipeline import Peak

NUM_ROWS, NUM_FILES = 20_000, 20
LEFT = 1000


class Upper:
    """A stub: the text in capitals, so many seconds a batch. The first batch with rows leaves a mark."""

    def __init__(self, folder, pause):
        self.mark, self.pause = Path(folder) / "first", pause

    def __call__(self, table):
        if table.num_rows and not self.mark.exists():
            self.mark.write_text(str(time.time()))
        time.sleep(self.pause if table.num_rows else 0)
        return table.append_column("answer", pa.array([text.upper() for text in table.column("text").to_pylist()]))


def write_input(folder, num_rows):
    (folder / "in").mkdir()
    size = num_rows // NUM_FILES
    for at in range(NUM_FILES):
        ids = range(at * size, (at + 1) * size)
        table = pa.table({"id": list(ids), "text": [f"prompt {row}" for row in ids]})
        pq.write_table(table, folder / "in" / f"{at:02d}.parquet")


def run(folder, pause=0.15):
    """One attempt."""
    from ray.data.checkpoint import CheckpointConfig

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.checkpoint_config = CheckpointConfig("id", f"{folder}/checkpoint", delete_checkpoint_on_success=False)
    rows = ray.data.read_parquet(f"{folder}/in")
    args = {"fn_constructor_args": (str(folder), pause), "batch_format": "pyarrow", "batch_size": 100}
    rows.map_batches(Upper, compute=ray.data.ActorPoolStrategy(size=2), num_cpus=0.5, **args).write_parquet(
        f"{folder}/out"
    )


def attempt(folder):
    """The same in a process of its own, with a cluster of its own."""
    return subprocess.Popen(
        [sys.executable, __file__, "run", str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def killed(seed, root):
    """One run that is killed; what its output has then."""
    choice = random.Random(seed)
    folder = root / str(seed)
    folder.mkdir()
    write_input(folder, NUM_ROWS)
    driver = attempt(folder)
    while driver.poll() is None and not (folder / "first").exists():
        time.sleep(0.05)
    time.sleep(choice.uniform(1, 12))
    late = driver.poll() is not None
    what = choice.choice(["driver", "worker"])
    family = psutil.Process(driver.pid).children(recursive=True) if driver.poll() is None else []
    workers = [process for process in family if "ray::" in " ".join(process.cmdline())]
    if what == "driver" and driver.poll() is None:
        driver.kill()
    elif workers:
        choice.choice(workers).kill()
    if what == "driver":
        for process in family:
            if process.is_running():
                process.kill()
        driver.wait()
    code = driver.wait(300)
    attempts = 1
    while code and attempts < 4:
        attempts += 1
        code = attempt(folder).wait(300)
    ids = Counter(pq.read_table(folder / "out", columns=["id"]).column("id").to_pylist())
    pending = len(list(folder.glob("checkpoint/*.pending.parquet")))
    lost, twice = NUM_ROWS - len(ids), sum(times > 1 for times in ids.values())
    print(
        "RESULT kill",
        {
            "seed": seed,
            "killed": "nothing: it had ended" if late else what,
            "attempts": attempts,
            "code": code,
            "lost": lost,
            "twice": twice,
            "pending": pending,
        },
        flush=True,
    )
    shutil.rmtree(folder)


def memory(num_rows, root):
    """A run that is done but for some rows."""
    write_input(root, num_rows)
    (root / "checkpoint").mkdir()
    (root / "out").mkdir()
    step = num_rows // 1000
    for start in range(0, num_rows - LEFT, step):
        ids = pa.table({"id": list(range(start, min(start + step, num_rows - LEFT)))})
        pq.write_table(ids, root / "checkpoint" / f"{start:09d}.parquet")
    start = time.time()
    with Peak() as peak:
        ray.init("local", num_cpus=4, include_dashboard=False, logging_level="ERROR")
        run(root, 0)
    first = float((root / "first").read_text()) - start
    print(
        "RESULT memory",
        {
            "rows": num_rows,
            "first_new_row_s": round(first, 1),
            "whole_s": round(time.time() - start, 1),
            "peak_mib": round(peak.mib),
        },
        flush=True,
    )


def main():
    mode, *rest = sys.argv[1:]
    if mode == "run":
        ray.init("local", num_cpus=4, include_dashboard=False, logging_level="ERROR")
        run(Path(rest[0]))
        return
    with tempfile.TemporaryDirectory() as folder:
        if mode == "kills":
            for seed in range(int(rest[0]) if rest else 10):
                killed(seed, Path(folder))
        else:
            memory(int(rest[0]) if rest else 10_000_000, Path(folder))


if __name__ == "__main__":
    main()
