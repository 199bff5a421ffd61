"""The job file as a typed value: what `rayferry submit` reads and what travels as `spec.json`."""

import difflib
import posixpath
import re
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from rayferry.job.errors import JobError, SpecError

# Engine arguments people write most. Only used to catch a misspelt key: other keys go to vLLM as they are.
# Source: https://docs.vllm.ai/en/latest/configuration/engine_args.html
COMMON_ENGINE_KEYS = (
    "async_scheduling",
    "block_size",
    "compilation_config",
    "cpu_offload_gb",
    "data_parallel_size",
    "data_parallel_size_local",
    "disable_log_stats",
    "distributed_executor_backend",
    "dtype",
    "enable_chunked_prefill",
    "enable_expert_parallel",
    "enable_lora",
    "enable_prefix_caching",
    "enforce_eager",
    "gpu_memory_utilization",
    "hf_overrides",
    "hf_token",
    "kv_cache_dtype",
    "limit_mm_per_prompt",
    "load_format",
    "max_lora_rank",
    "max_loras",
    "max_model_len",
    "max_num_batched_tokens",
    "max_num_seqs",
    "mm_processor_kwargs",
    "pipeline_parallel_size",
    "quantization",
    "seed",
    "served_model_name",
    "speculative_config",
    "tensor_parallel_size",
    "tokenizer",
    "tokenizer_mode",
    "tokenizer_revision",
    "trust_remote_code",
)
# What suffixes tell of a file, where the job file does not.
FORMATS = {
    ".txt": "text",
    ".text": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".bin": "binary",
}
COMPRESSION = {".gz", ".zst", ".bz2", ".lz4"}
_DURATION = re.compile(r"^(\d+(?:\.\d+)?)\s*(s|m|h|d)$")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_BUCKET = re.compile(r"^[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]$")


def check_uri(uri: str) -> str:
    """Returns `uri` if it names a place that Rayferry can read or write.

    Accepts `s3://bucket/key`, `s3://anonymous@bucket/key`, `file:///path` and `/path`.

    Raises:
        ValueError: the text is none of these.
    """
    parts = urlsplit(uri)
    if parts.scheme == "s3":
        bucket = parts.netloc.removeprefix("anonymous@")
        if not _BUCKET.match(bucket):
            msg = f"{bucket!r} is not a bucket name; write s3://bucket/prefix/"
            raise ValueError(msg)
        if parts.query or parts.fragment:
            msg = "a URI may not carry '?' or '#'; set endpoint and region by AWS_ENDPOINT_URL and AWS_REGION"
            raise ValueError(msg)
    elif parts.scheme not in {"", "file"} or parts.netloc or not parts.path.startswith("/"):
        msg = "not a URI that can be used here; write s3://bucket/prefix/ (or an absolute path on the cluster's nodes)"
        raise ValueError(msg)
    return uri


class _Model(BaseModel):
    """Unknown keys are errors; values are not coerced across kinds; instances do not change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class InputSpec(_Model):
    """Where the prompts are and which part of a row is the prompt."""

    uri: str = Field(description="one file, or a prefix whose files are all read")
    format: Literal["auto", "text", "jsonl", "csv", "parquet", "binary"] = Field(
        "auto", description="auto decides for each file by its suffix"
    )
    column: str | None = Field(None, description="the column that holds the prompt; default: text, or prompt")
    id_column: str | None = Field(None, description="the column that names a row; default: its file and position")
    anonymous: bool = Field(default=False, description="read without credentials (also: s3://anonymous@bucket/...)")

    _uri = field_validator("uri")(check_uri)

    def format_of(self, path: str) -> str:
        """The format of one file: the declared one, or by its suffix, a compression's suffix aside.

        Raises:
            JobError: nothing is declared and the suffix tells nothing.
        """
        if self.format != "auto":
            return self.format
        stem, suffix = posixpath.splitext(path)
        if suffix.lower() in COMPRESSION:
            suffix = posixpath.splitext(stem)[1]
        found = FORMATS.get(suffix.lower())
        if found is None:
            known = ", ".join(sorted(set(FORMATS.values())))
            msg = f"{path}: the suffix {suffix!r} does not tell the format; set input.format to one of {known}"
            raise JobError(msg)
        return found

    @property
    def is_anonymous(self) -> bool:
        """True if the input is read without credentials."""
        return self.anonymous or self.uri.startswith("s3://anonymous@")


class OutputSpec(_Model):
    """Where the answers go."""

    uri: str = Field(description="an empty prefix; data/, errors/ and _meta/ are made under it")
    rows_per_part: int = Field(1000, ge=1, description="rows gathered before a Parquet part is written")
    preview_rows: int = Field(0, ge=0, le=10, description="first answers to quote in the job's log")

    @field_validator("uri")
    @classmethod
    def _writable_uri(cls, uri: str) -> str:
        check_uri(uri)
        if urlsplit(uri).netloc.startswith("anonymous@"):
            msg = "an output cannot be written anonymously"
            raise ValueError(msg)
        return uri


class SamplingSpec(_Model):
    """Sampling parameters, by vLLM's names; what is left out keeps vLLM's default (max_tokens apart).

    Source: https://docs.vllm.ai/en/latest/api/vllm/sampling_params.html
    """

    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    max_tokens: int = Field(256, ge=1, description="most tokens generated for a row")
    min_tokens: int | None = Field(None, ge=0)
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    seed: int | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0)
    ignore_eos: bool | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[int] | None = None
    logit_bias: dict[Annotated[int, Field(strict=False)], float] | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None

    def to_kwargs(self) -> dict[str, Any]:
        """Keyword arguments for `vllm.SamplingParams`: only what the user set, and max_tokens."""
        return self.model_dump(exclude_none=True)


class EngineSpec(_Model):
    """Engine arguments: three that Rayferry reads itself; every further key goes to vLLM as it is."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    tensor_parallel_size: int = Field(1, ge=1, description="GPUs that one replica splits each layer over")
    pipeline_parallel_size: int = Field(1, ge=1, description="stages of GPUs that one replica is cut into")
    max_num_seqs: int | None = Field(None, ge=1, description="sequences that one engine runs together")

    @model_validator(mode="after")
    def _no_near_misses(self) -> "EngineSpec":
        known = {*COMMON_ENGINE_KEYS, *type(self).model_fields}
        for key in self.model_extra or {}:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.85)
            if key == "hf_token":
                msg = "a secret has no place in a job file: set HF_TOKEN in the environment of the cluster's nodes"
                raise ValueError(msg)
            if key in {"model", "revision"}:
                msg = f"{key!r} is set at the top level of the job file, not under engine"
                raise ValueError(msg)
            if near and key not in known:
                msg = f"unknown key {key!r}; did you mean {near[0]!r}?"
                raise ValueError(msg)
        return self

    @property
    def world_size(self) -> int:
        """GPUs that one replica needs."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    def to_kwargs(self) -> dict[str, Any]:
        """Keyword arguments for `vllm.LLM`."""
        return self.model_dump(exclude_none=True)


class ReplicaRange(_Model):
    """A pool of replicas that grows and shrinks with the work."""

    min: int = Field(1, ge=1)
    max: int = Field(ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> "ReplicaRange":
        if self.min > self.max:
            msg = f"min ({self.min}) is above max ({self.max})"
            raise ValueError(msg)
        return self


class ResourcesSpec(_Model):
    """What a replica runs on."""

    device: Literal["auto", "gpu", "cpu"] = Field(
        "auto", description="auto: GPUs, unless the cluster neither has any nor can start any"
    )
    accelerator_type: str | None = Field(None, description="Ray's name of the GPU model, such as A10G or H100")


class OnErrorSpec(_Model):
    """What failed rows mean for the run."""

    max_error_rate: float = Field(0.05, ge=0, le=1, description="exit code 3 if a larger share of the rows failed")


class RetrySpec(_Model):
    """How often a run is tried."""

    max_attempts: Annotated[int, Field(ge=1, le=1)] = Field(
        1, description="Ray jobs that one run may use; more than one is not supported yet"
    )


class RuntimeEnvSpec(_Model):
    """What the job's processes need beyond the cluster's own image."""

    pip: list[str] = Field(default_factory=list, description="packages that Ray installs for the job")
    env_vars: dict[str, str] = Field(default_factory=dict, description="stored in clear by Ray: no secrets")
    image_uri: None = Field(None, description="not supported: Ray takes no image beside a package that travels")


class ClusterSpec(_Model):
    """Which cluster."""

    address: str | None = Field(None, description="the dashboard, such as http://127.0.0.1:8265")

    @field_validator("address")
    @classmethod
    def _http(cls, address: str | None) -> str | None:
        if address is not None and urlsplit(address).scheme not in {"http", "https"}:
            msg = "the Jobs API is reached by http:// or https://, such as http://head:8265"
            raise ValueError(msg)
        return address


class JobSpec(_Model):
    """One batch-inference job, validated."""

    schema_version: Literal[1] = 1
    name: str = Field("rayferry", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", description="a label for people")
    model: str = Field(min_length=1, description="hub id, folder on the nodes, or s3:// prefix")
    revision: str | None = Field(None, description="branch, tag or commit of a hub model")
    task: Literal["generate", "chat"] = Field(
        "generate", description="generate continues the prompt; chat puts it through the model's chat template"
    )
    input: InputSpec
    output: OutputSpec
    sampling: SamplingSpec = Field(default_factory=SamplingSpec)
    engine: EngineSpec = Field(default_factory=EngineSpec)
    replicas: int | ReplicaRange = Field(1, description="engines: a number, or {min, max}")
    batch_size: int = Field(32, ge=1, description="rows handed over at a time; the engine mixes batches freely")
    resources: ResourcesSpec = Field(default_factory=ResourcesSpec)
    on_error: OnErrorSpec = Field(default_factory=OnErrorSpec)
    retry: RetrySpec = Field(default_factory=RetrySpec)
    timeout: str | None = Field(None, description="most time from start to end, such as 90m or 6h")
    runtime_env: RuntimeEnvSpec = Field(default_factory=RuntimeEnvSpec)
    cluster: ClusterSpec = Field(default_factory=ClusterSpec)

    @model_validator(mode="after")
    def _output_apart(self) -> "JobSpec":
        if self.output.uri.rstrip("/").startswith(self.input.uri.rstrip("/") + "/"):
            msg = f"output.uri {self.output.uri!r} lies under input.uri: the next run would read the answers as prompts"
            raise ValueError(msg)
        return self

    @field_validator("replicas")
    @classmethod
    def _at_least_one(cls, value: int | ReplicaRange) -> int | ReplicaRange:
        if isinstance(value, int) and value < 1:
            msg = "at least one replica is needed"
            raise ValueError(msg)
        return value

    @field_validator("timeout", mode="before")
    @classmethod
    def _with_unit(cls, value: object) -> object:
        if isinstance(value, int | float):
            msg = f"a duration needs a unit: {value}s, {value}m, {value}h or {value}d"
            raise ValueError(msg)  # noqa: TRY004  # pydantic makes a message of this one
        return value

    @field_validator("timeout")
    @classmethod
    def _duration(cls, value: str | None) -> str | None:
        match = _DURATION.match(value or "")
        if value is not None and not (match and float(match[1])):
            msg = "not a duration; write a number and s, m, h or d, such as 90m"
            raise ValueError(msg)
        return value

    @field_validator("model")
    @classmethod
    def _model_uri(cls, value: str) -> str:
        return check_uri(value) if value.startswith(("s3://", "file://")) else value

    @property
    def timeout_s(self) -> float | None:
        """Seconds that the run may take, or None."""
        match = _DURATION.match(self.timeout or "")
        return float(match[1]) * _SECONDS[match[2]] if match else None

    @property
    def min_replicas(self) -> int:
        """Replicas that must fit the cluster for the run to start."""
        return self.replicas if isinstance(self.replicas, int) else self.replicas.min


def parse(data: object, origin: str) -> JobSpec:
    """Validates what a job file holds.

    Args:
        data: the file's content, as Python values.
        origin: where it came from, for the message.

    Raises:
        SpecError: naming origin, path, value and, for an unknown key, the nearest known one.
    """
    if not isinstance(data, Mapping):
        kind = "empty" if data is None else f"a {type(data).__name__}"
        msg = f"{origin}: a job file is a mapping of keys to values, this one is {kind}; try: rayferry init"
        raise SpecError(msg)
    try:
        return JobSpec.model_validate(dict(data))
    except ValidationError as error:
        lines = [_explain(detail) for detail in error.errors(include_url=False)]
        raise SpecError("\n".join(f"{origin}: {line}" for line in dict.fromkeys(lines))) from error


def _explain(detail: ErrorDetails) -> str:
    # names of a union's members, which pydantic puts into the path
    inner = {"int", "ReplicaRange", "str", "list[str]"}
    location = [part for part in detail["loc"] if part not in inner and not str(part).startswith("function-")]
    path = ".".join(str(part) for part in location) or "(top level)"
    if detail["type"] == "extra_forbidden":
        known = list(_known_paths(JobSpec))
        siblings = [key.rsplit(".", 1)[-1] for key in known if key.rpartition(".")[0] == path.rpartition(".")[0]]
        near = difflib.get_close_matches(str(location[-1]), siblings, n=1, cutoff=0.7)
        elsewhere = [key for key in known if key.rsplit(".", 1)[-1] == location[-1]]
        hint = near or elsewhere
        return f"{path}: unknown key" + (f"; did you mean {hint[0]!r}?" if hint else f"; known: {', '.join(siblings)}")
    if detail["type"] == "missing":
        return f"{path}: required, but not there"
    message = detail["msg"].removeprefix("Value error, ")
    if isinstance(detail["input"], dict):
        return f"{path}: {message}"
    return f"{path}: {_shorten(detail['input'])}: {message[:1].lower()}{message[1:]}"


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."  # noqa: PLR2004


def _known_paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, info in model.model_fields.items():
        yield prefix + name
        for kind in _leaves(info.annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _known_paths(kind, f"{prefix}{name}.")


def _leaves(annotation: object) -> tuple[object, ...]:
    return get_args(annotation) if get_origin(annotation) in {Union, UnionType} else (annotation,)
