"""What of a run is done, durably: a record beside the parts of every write task, and what the run was asked.

A record is written after its parts and names their rows by file and position. So a row is done if a record says so,
however an attempt ended; what a part holds that no record names was never done, and is removed. Positions that follow
each other are one span, so that ten million rows are some thousand numbers.
"""

import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from rayferry.job import attempts, identity, storage
from rayferry.job.earlier import NOTHING_EARLIER, Earlier
from rayferry.job.errors import JobError, TornError
from rayferry.job.layout import Layout
from rayferry.job.log import counted, say
from rayferry.job.spans import Spans

SCHEMA_VERSION = 1
_THREADS = 32
_MOST_OVERWRITTEN = 100


@dataclass(frozen=True)
class Record:
    """What one write task did.

    Attributes:
        parts: its parts, as the manifest lists them.
        rows: spans of the rows in them, by file.
    """

    parts: list[dict[str, Any]]
    rows: dict[str, list[list[int]]]

    def write(self, uri: str) -> None:
        """Puts it into `_meta/checkpoint/`, all at once."""
        content = {"schema_version": SCHEMA_VERSION, "parts": self.parts, "rows": self.rows}
        storage.write_bytes(uri, json.dumps(content).encode())

    @classmethod
    def read(cls, uri: str) -> "Record | None":
        """A record, or None if there is none.

        Raises:
            JobError: it is not one of ours.
        """
        found = storage.read_json(uri)
        if found is None:
            return None
        try:
            return cls(found["parts"], found["rows"])
        except (KeyError, TypeError) as error:
            msg = f"{uri}: not a record of a finished task; start anew with --overwrite"
            raise JobError(msg) from error


@dataclass(frozen=True)
class Done:
    """What earlier attempts of the run left.

    Attributes:
        records: of all their write tasks, by URI.
        num_rows: rows of the files that were read to their end, by path.
        attempts: their names, in order, and last that of the attempt which goes on.
        overwritten: names of the attempts of the run that was here before, whose workers may outlive it.
        manifest: of the run, if it is over.
    """

    records: dict[str, Record] = field(default_factory=dict)
    num_rows: dict[str, int] = field(default_factory=dict)
    attempts: list[str] = field(default_factory=list)
    overwritten: list[str] = field(default_factory=list)
    manifest: dict[str, Any] | None = None

    @property
    def parts(self) -> list[dict[str, Any]]:
        """The parts of all records."""
        return [part for record in self.records.values() for part in record.parts]

    @functools.cached_property
    def spans(self) -> dict[str, Spans]:
        """Done rows of each file, by path."""
        return {path: Spans(several) for path, several in _spans_by_path(self.records.values()).items()}

    def num_left(self, files: Sequence[storage.File], num_rows: int) -> int:
        """About how many rows are still to do.

        Args:
            files: of the input.
            num_rows: in all of them, about. Where a file was not read to its end yet, a tenth of what it should have
                is left at least: few rows are shared out in another way than many.
        """
        if not self.records:
            return num_rows
        rows_per_byte = num_rows / max(1, sum(file.num_bytes for file in files))
        left = 0.0
        for file in files:
            num_done = len(self.spans.get(file.path, ()))
            about = rows_per_byte * file.num_bytes
            known = self.num_rows.get(file.path)
            left += max(about - num_done, about / 10) if known is None else known - num_done
        return math.ceil(left)

    def whole(self, file: storage.File) -> bool:
        """True if every row of a file is done."""
        return self.num_rows.get(file.path) == len(self.spans.get(file.path, ()))


def check_output(layout: Layout, earlier: Earlier = NOTHING_EARLIER) -> dict[str, Any] | None:
    """Makes sure that the output is empty, or one to go on with; changes nothing.

    Args:
        layout: the run's places.
        earlier: what becomes of what is there.

    Returns:
        What the run was asked that is to be gone on with, or None.

    Raises:
        JobError: the output holds something, and it was not said what should become of it; or another version of
            Rayferry began what is to be gone on with.
    """
    if earlier.later:
        there = storage.read_bytes(layout.run_uri)
        name = identity.name_of(there)
        if there and name and name == earlier.run:
            return _of_this_version(layout, json.loads(there))
        if earlier.overwrite and name and earlier.instead not in (None, name):
            msg = f"{layout.output_uri} holds {name}, which began after this run was told to overwrite what was there"
            raise JobError(f"{msg}; submit it again with --overwrite to remove that too, or choose another output.uri")
    if earlier.overwrite:
        return None
    before = storage.read_json(layout.run_uri)
    if not earlier.resume or before is None:
        _refuse_used(layout, before, is_resume=earlier.resume)
        return None
    return _of_this_version(layout, before)


def _of_this_version(layout: Layout, before: Any) -> dict[str, Any]:
    """What `_meta/run.json` holds, if this version wrote it."""
    if not isinstance(before, dict) or before.get("schema_version") != identity.SCHEMA_VERSION:
        msg = f"{layout.run_uri} is of another version of Rayferry; end the run with that one, or start anew with"
        raise JobError(f"{msg} --overwrite")
    return before


def begin(
    layout: Layout,
    submission_id: str,
    before: Mapping[str, Any] | None,
    now: Mapping[str, Any],
    *,
    stays_over: bool = False,
    token: str | None = None,
) -> Done:
    """Makes the output this attempt's, and finds what is done.

    Args:
        layout: the run's places.
        submission_id: the Ray job that begins.
        before: what `check_output` gave; None: whatever is there is removed.
        now: what this attempt is asked, by `identity.asked`, and what else its later attempts are to know.
        stays_over: by `is_over`; else a manifest that is there goes.
        token: the run's name, by which its later attempts know it.

    Raises:
        JobError: what is there cannot be read.
    """
    overwritten = _empty(layout) if before is None else before["overwritten"]
    name = attempts.new_name(layout, submission_id, overwritten)
    if before is None:
        done = Done(attempts=[name], overwritten=overwritten)
    else:
        manifest = storage.read_json(layout.manifest_uri)
        if manifest is not None and not stays_over:
            storage.remove(layout.manifest_uri)
        done = replace(_done(layout, name, manifest, is_over=stays_over), overwritten=overwritten)
    if before is None or before["files"] != now["files"]:
        begun_by, its_token = (submission_id, token) if before is None else (before["run"], before["token"])
        names = {"run": begun_by, "token": its_token, "overwritten": overwritten}
        state = {"schema_version": identity.SCHEMA_VERSION, **names, **now}
        storage.write_bytes(layout.run_uri, json.dumps(state).encode())
    attempts.record(layout, name, submission_id, token)
    return done


def is_over(layout: Layout, before: Mapping[str, Any], now: Mapping[str, Any], *, retry_failed: bool = False) -> bool:
    """True if a run has a manifest, and nothing is to be done since; arguments as of `begin`."""
    manifest = storage.read_json(layout.manifest_uri)
    if manifest is None or before["files"] != now["files"]:
        return False
    return not (retry_failed and manifest["counts"]["failed"])


def _empty(layout: Layout) -> list[str]:
    """Removes what a run left: first what says that it is there, for nobody to go on with it if this is cut short.

    Returns:
        The names of its attempts, and of those before.
    """
    names = identity.overwritten(storage.read_bytes(layout.run_uri))
    names += attempts.recorded(layout)
    there = {layout.output_uri + name for name in storage.children(layout.output_uri)}
    there |= {layout.meta_uri + name for name in storage.children(layout.meta_uri)}
    parts = (layout.data_uri, layout.errors_uri, layout.openai_uri)
    told = (layout.manifest_uri, layout.run_uri, layout.spec_uri)
    for uri in (*told, layout.checkpoint_uri, *parts, layout.attempts_uri):
        if uri.rstrip("/") in there:
            storage.remove(uri)
    return names[-_MOST_OVERWRITTEN:]


def _refuse_used(layout: Layout, before: Mapping[str, Any] | None, *, is_resume: bool) -> None:
    """Refuses an output that holds something, but for what a run that wrote no row leaves in `_meta/`."""
    found = [name for name in storage.children(layout.output_uri) if name != "_meta"]
    found += [name for name in storage.children(layout.meta_uri) if layout.manifest_uri.endswith("/" + name)]
    if not found:
        return
    anew = "start anew with --overwrite, which removes it; or choose another output.uri"
    if is_resume:
        msg = f"{layout.output_uri} holds {found[0]}, but no run that can be resumed; {anew}"
    elif before is None:
        msg = f"{layout.output_uri} is not empty ({found[0]} is there); {anew}"
    else:
        over = "a finished" if "manifest.json" in found else "an unfinished"
        msg = f"{layout.output_uri} is not empty: it holds {over} run ({before['run']}); go on with --resume, or {anew}"
    raise JobError(msg)


def check_once(records: Mapping[str, Record]) -> None:
    """Makes sure that no row is in two of a run's records, by URI.

    Raises:
        TornError: one is, so another is missing if their number is right.
    """
    repeated = _apart(records)[1]
    if repeated:
        msg = f"some rows were answered twice (those of {repeated[0]}); no manifest is made; go on with --resume"
        raise TornError(msg)


def _done(layout: Layout, name: str, manifest: dict[str, Any] | None, *, is_over: bool) -> Done:
    """What is done, by the records; of a run that has, or had, a manifest, by those whose parts are in it."""
    ours = [*attempts.in_order(layout), name]
    there = storage.children(layout.checkpoint_uri)
    uris = [layout.checkpoint_uri + one for one in there if attempts.of_record(one) in ours]
    # of an overwritten run a worker may have put one since
    others = [layout.checkpoint_uri + one for one in there if attempts.of_record(one) not in ours]
    with ThreadPoolExecutor(_THREADS) as threads:
        asked = [uri for uri in uris if not uri.endswith(attempts.FILES)]
        found = {uri: record for uri, record in zip(asked, threads.map(Record.read, asked), strict=True) if record}
        read_files = list(threads.map(storage.read_json, [uri for uri in uris if uri.endswith(attempts.FILES)]))
    kept = found
    if manifest is not None:
        listed = {part["uri"] for part in manifest["parts"]}
        kept = {uri: record for uri, record in found.items() if all(part["uri"] in listed for part in record.parts)}
    if not is_over:
        kept, torn = _whole(layout, kept)
        if torn:
            say(f"{counted(len(torn), 'record')} of parts that are not there: their rows are answered again")
        kept = _apart(kept)[0]
    for uri in [*others, *sorted(found.keys() - kept.keys())]:
        storage.remove(uri)
    return Done(
        records=kept,
        num_rows={path: rows for files in read_files if files for path, rows in files.items()},
        attempts=ours,
        manifest=manifest if is_over else None,
    )


def _whole(layout: Layout, records: Mapping[str, Record]) -> tuple[dict[str, Record], list[str]]:
    """Records whose parts are all there, and the URIs of the others.

    A part is removed by hand, or because its rows were found in another one's record, too.
    """
    folders = (layout.data_uri, layout.errors_uri, layout.openai_uri)
    there = {_place(uri + name) for uri in folders for name in storage.children(uri)} if records else set()
    whole = {uri: one for uri, one in records.items() if all(_place(part["uri"]) in there for part in one.parts)}
    return whole, sorted(records.keys() - whole.keys())


def _apart(records: Mapping[str, Record]) -> tuple[dict[str, Record], list[str]]:
    """Records of which no two are of one row, and the URIs of the others.

    A worker may outlive its attempt, and write a record after the next attempt has looked for them.
    """
    every = sorted(
        (path, start, stop, uri)
        for uri, record in records.items()
        for path, several in _spans_by_path([record]).items()
        for start, stop in several
    )
    repeated: set[str] = set()
    last = ("", 0)
    for path, start, stop, uri in every:
        if uri in repeated:
            continue
        if path == last[0] and start < last[1]:
            repeated.add(uri)
        else:
            last = (path, stop)
    return {uri: record for uri, record in records.items() if uri not in repeated}, sorted(repeated)


def _spans_by_path(records: Iterable[Record]) -> dict[str, list[list[int]]]:
    spans: dict[str, list[list[int]]] = {}
    for record in records:
        for uri, several in record.rows.items():
            spans.setdefault(uri.removeprefix("s3://"), []).extend(several)
    return spans


def save_files(layout: Layout, attempt: str, num_rows: Mapping[str, int]) -> None:
    """Keeps how many rows files have that were read to their end, so that a file that is done is not read again."""
    storage.write_bytes(f"{layout.checkpoint_uri}{attempt}{attempts.FILES}", json.dumps(dict(num_rows)).encode())


def remove_orphans(layout: Layout, parts: Iterable[str], names: Sequence[str]) -> None:
    """Removes parts of this run's attempts that no record names.

    Args:
        layout: the run's places.
        parts: URIs of the run's parts.
        names: the attempts whose parts may be removed.

    Raises:
        JobError: there are parts of somebody else.
    """
    ours = {_place(uri) for uri in parts}
    begun = tuple(f"{name}-" for name in names)
    for uri in (layout.data_uri, layout.errors_uri, layout.openai_uri):
        for name in storage.children(uri):
            if _place(uri + name) in ours:
                continue
            if not name.startswith(begun):
                msg = f"{layout.output_uri} holds {name}, which this run did not write: another one uses this output"
                raise JobError(msg)
            storage.remove(uri + name)


def _place(uri: str) -> tuple[str, ...]:
    """Folder and name of a part: one task's rows and its errors share the name."""
    return tuple(uri.rsplit("/", 2)[1:])
