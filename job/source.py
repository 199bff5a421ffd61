"""Prompts in: the input's files as a Ray Dataset of rows with ids."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
from ray.data.datasource import DefaultFileMetadataProvider, FileBasedDatasource

from rayferry.job.checkpoint import Done
from rayferry.job.ids import Repeated
from rayferry.job.look import Input
from rayferry.job.row_maker import RowMaker
from rayferry.job.rows import without_copy
from rayferry.job.spec import JobSpec
from rayferry.job.storage import File

if TYPE_CHECKING:
    from ray.actor import ActorHandle

_TELL_EVERY_S = 1.0


def read(
    spec: JobSpec,
    found: Input,
    progress: "ActorHandle[Any] | None" = None,
    repeated: Repeated | None = None,
    done: Done | None = None,
) -> ray.data.Dataset | None:
    """Reads the input lazily.

    **Shape**: one row per line (text, blank lines aside), object (JSON), record (CSV), row (Parquet) or file
    (binary); columns as `rows.SOURCE_SCHEMA`, then the input's own. A row that cannot be used has `stage`,
    `error_type` and `error` set and no prompt. Same input, same ids, whatever the parallelism.

    Args:
        spec: the job.
        found: what `look.look` saw.
        progress: told the number of rows of every file once it is read.
        repeated: what `ids.find_repeated` saw, if rows name themselves.
        done: what is left out.

    Returns:
        The rows; None if every file is done.
    """
    source = PromptDatasource(spec, found, progress, repeated, done)
    if not source.num_files:
        return None
    # one task a file, so that a few large files are read at once; small ones share a task
    tasks = min(source.num_files, 1000)
    return ray.data.read_datasource(source, override_num_blocks=tasks)


class _Listed(DefaultFileMetadataProvider):  # type: ignore[misc]  # ray.data has no types for it
    """Hands back the listing that is there already, instead of asking the store for every size again."""

    def __init__(self, files: list[File]) -> None:
        self._files = files

    def expand_paths(self, *_args: object, **_kwargs: object) -> Iterator[tuple[str, int]]:
        yield from ((file.path, file.num_bytes) for file in self._files)


class PromptDatasource(FileBasedDatasource):  # type: ignore[misc]  # ray.data has no types for it
    """Ray Data's reading of files (tasks, retries of a cut stream), with our rows.

    Source: https://docs.ray.io/en/latest/data/api/doc/ray.data.datasource.FileBasedDatasource.html
    """

    def __init__(
        self,
        spec: JobSpec,
        found: Input,
        progress: "ActorHandle[Any] | None" = None,
        repeated: Repeated | None = None,
        done: Done | None = None,
    ) -> None:
        self._rows = RowMaker(spec, found, repeated)
        files, self._done = found.files, {}
        if done is not None:
            files = [file for file in files if not done.whole(file)]
            self._done = {file.path: done.spans[file.path] for file in files if file.path in done.spans}
        self.num_files = len(files)
        if files:
            paths = [file.path for file in files]
            super().__init__(paths, filesystem=found.filesystem, meta_provider=_Listed(files))
        self._copied = found.copied
        self._num_bytes = {file.path: file.num_bytes for file in found.files}
        self._progress = progress

    def _open_input_source(self, filesystem: Any, path: str, **_open_args: Any) -> Any:
        return filesystem.open_input_file(path)  # with random access: it is looked into before it is read

    def _read_stream(self, f: Any, path: str) -> Iterator[pa.Table]:
        if f.closed:  # by a reading of it that failed and is tried again
            f = self._filesystem.open_input_file(path)
        count = 0
        told = time.monotonic()
        for num_rows, table in self._rows.tables(f, path, self._done.get(path)):
            count += num_rows
            if self._progress is not None and time.monotonic() - told > _TELL_EVERY_S:
                told = time.monotonic()
                self._progress.file_partly_read.remote(path, count, f.tell())
            if table is not None:
                yield table if self._copied is None else without_copy(table, self._copied)
        if self._progress is not None:
            ray.get(self._progress.file_read.remote(path, count, self._num_bytes[path]))
