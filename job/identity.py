"""What decides a run's answers: who goes on with a run must ask the same."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from rayferry.job import storage
from rayferry.job.errors import JobError
from rayferry.job.layout import Layout
from rayferry.job.log import counted
from rayferry.job.spec import JobSpec, parse

SCHEMA_VERSION = 3  # of `_meta/run.json`; what it holds is read by none but its own
_SHOWN, _SHOWN_CHARS = 5, 80
# Keys of the job file that change what a row's answer is.
_ANSWER_KEYS = {"model", "revision", "task", "sampling", "chat", "pooling", "lora"}
# Engine arguments that only change how fast it comes.
_SPEED_KEYS = {
    "tensor_parallel_size", "pipeline_parallel_size", "max_num_seqs", "max_num_batched_tokens", "load_format",
    "gpu_memory_utilization", "enforce_eager", "enable_prefix_caching", "disable_log_stats", "swap_space",
    "distributed_executor_backend", "enable_chunked_prefill", "cpu_offload_gb", "async_scheduling",
    "kv_cache_memory_bytes",
}  # fmt: skip


def settings(spec: JobSpec) -> dict[str, Any]:
    """All that decides the answers but the input: model, revision, task, template, sampling, such engine arguments."""
    content = spec.model_dump(mode="json", by_alias=True, include=_ANSWER_KEYS)
    content["engine"] = {
        key: value
        for key, value in spec.engine.to_kwargs().items()
        if key not in _SPEED_KEYS or (key == "load_format" and value == "dummy")  # no weights at all
    }
    content["input"] = spec.input.model_dump(mode="json", exclude={"anonymous"})
    content["on_error"] = {"prompt_too_long": spec.on_error.prompt_too_long}
    settings: dict[str, Any] = json.loads(json.dumps(content))  # as they come back from a file
    return settings


def asked(settings: Mapping[str, Any], files: Sequence[storage.File]) -> dict[str, Any]:
    """What decides a run's answers, but for weights: see `settings`, and of each file `identities`."""
    return {"settings": dict(settings), "files": identities(files)}


def identities(files: Sequence[storage.File]) -> list[list[Any]]:
    """Of each file its path, size and ETag, or last change."""
    return [[file.path, file.num_bytes, file.version] for file in files]


def in_order(files: Sequence[storage.File], before: Sequence[Sequence[Any]]) -> list[storage.File]:
    """Files as a run knows them, by `asked`: those it was begun with, in its order, then those that came since.

    So the first row of an id stays the first, however a new file is called.
    """
    place = {file[0]: index for index, file in enumerate(before)}
    return sorted(files, key=lambda file: place.get(file.path, len(place)))


def fingerprint(asked: Mapping[str, Any]) -> str:
    """Hash of all that decides the answers, by `asked`, and of the weights."""
    return "sha256:" + hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def require_same(spec: JobSpec, layout: Layout, run: bytes | None) -> None:
    """Refuses to go on with a run, by what its `_meta/run.json` holds; without it there is nothing to go on with.

    Raises:
        JobError: it was begun with another job file.
    """
    before = _state(run)
    if before.get("schema_version") == SCHEMA_VERSION and isinstance(before.get("settings"), dict):
        travelled = parse(json.loads(json.dumps(spec.to_json())), "the job file")
        refuse_other(layout, before["settings"], settings(travelled))


def name_of(run: bytes | None) -> str:
    """The name of the run that is there, by what its `_meta/run.json` holds; "" if there is none."""
    state = _state(run)
    return str(state.get("token") or state.get("run") or "")


def overwritten(run: bytes | None) -> list[str]:
    """The names of attempts that the run there has overwritten, by what its `_meta/run.json` holds."""
    names = _state(run).get("overwritten")
    return [str(name) for name in names] if isinstance(names, list) else []


def _state(run: bytes | None) -> dict[str, Any]:
    with suppress(ValueError):  # what is wrong with the file itself, the run says
        state = json.loads(run or b"")
        return state if isinstance(state, dict) else {}
    return {}


def refuse_other(layout: Layout, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuses to go on with a run whose answers were asked for in another way.

    Args:
        layout: the run's places.
        before: the `settings` it was begun with.
        now: those of who would go on with it.

    Raises:
        JobError: with what differs.
    """
    changed = [f"{key}: {_short(old)} -> {_short(new)}" for key, old, new in _differences("", before, now)]
    if changed:
        msg = (
            f"{layout.output_uri} was begun with another job file, so its answers would not fit together "
            f"({'; '.join(changed[:_SHOWN])}); change that back, or start anew with --overwrite"
        )
        raise JobError(msg)


def _differences(path: str, before: Any, now: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        return [
            found
            for key in keys
            for found in _differences(f"{path}.{key}" if path else key, before.get(key), now.get(key))
        ]
    return [] if before == now else [(path, before, now)]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + "..."


def refuse_other_files(
    layout: Layout,
    what: str,
    before: Sequence[Sequence[Any]],
    now: Sequence[Sequence[Any]],
    *,
    new_files: bool | None = None,
) -> None:
    """Refuses to go on with a run that was begun with other files.

    Args:
        layout: the run's places.
        what: they are, such as `input`.
        before: those it was begun with, by `identities`.
        now: those that are there.
        new_files: some may have come since; None: nobody can ask for that.

    Raises:
        JobError: with what differs.
    """
    old, new = ({file[0]: file[1:] for file in files} for files in (before, now))
    kinds = {
        "gone": [path for path in old if path not in new],
        "changed": [path for path in old if path in new and old[path] != new[path]],
        "new": [path for path in new if path not in old],
    }
    if new_files:
        del kinds["new"]
    told = [f"{counted(len(paths), 'file')} {kind}, such as {paths[0]}" for kind, paths in kinds.items() if paths]
    if told:
        only_new = new_files is not None and [kind for kind, paths in kinds.items() if paths] == ["new"]
        hint = "answer them too with --resume --new-input, or " if only_new else ""
        msg = (
            f"the {what} is not what {layout.output_uri} was begun with ({'; '.join(told)}); "
            f"{hint}start anew with --overwrite"
        )
        raise JobError(msg)
