"""The job file as a typed value: what `rayferry submit` reads and what travels as `spec.json`."""

import posixpath
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, field_validator, model_validator

from rayferry.job import leaks, secrets
from rayferry.job.engine_spec import EngineSpec
from rayferry.job.errors import SpecError
from rayferry.job.explain import explain
from rayferry.job.input_spec import InputSpec
from rayferry.job.sampling import SamplingSpec
from rayferry.job.typed import Text, Typed, check_plain_uri

_DURATION = re.compile(r"^(\d+(?:\.\d+)?)\s*(s|m|h|d)$")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
MAX_DAYS = 3650  # far more and clocks overflow
GENERATING = ("generate", "chat")


def seconds(duration: str) -> float:
    """A duration such as `90m` in seconds.

    Raises:
        ValueError: it is none.
    """
    match = _DURATION.match(duration)
    if not match or not float(match[1]):
        msg = "not a duration; write a number and s, m, h or d, such as 90m"
        raise ValueError(msg)
    found = float(match[1]) * _SECONDS[match[2]]
    if found > MAX_DAYS * _SECONDS["d"]:
        msg = f"too long; at most {MAX_DAYS}d"
        raise ValueError(msg)
    return found


def _with_unit(value: object) -> object:
    if isinstance(value, int | float):
        msg = f"a duration needs a unit: {value}s, {value}m, {value}h or {value}d"
        raise ValueError(msg)  # noqa: TRY004  # pydantic makes a message of this one
    return value


def _check_duration(value: str) -> str:
    seconds(value)
    return value


Duration = Annotated[str, BeforeValidator(_with_unit), AfterValidator(_check_duration)]


class OutputSpec(Typed):
    """Where the answers go."""

    uri: str = Field(description="an empty prefix; data/, errors/ and _meta/ are made under it")
    rows_per_part: int = Field(1000, ge=1, description="rows gathered before a Parquet part is written")
    preview_rows: int = Field(0, ge=0, le=10, description="first answers to quote in the job's log")

    @field_validator("uri")
    @classmethod
    def _writable_uri(cls, uri: str) -> str:
        check_plain_uri(uri)
        if urlsplit(uri).netloc.startswith("anonymous@"):
            msg = "an output cannot be written anonymously"
            raise ValueError(msg)
        if not uri.startswith("s3://") and posixpath.normpath(urlsplit(uri).path).strip("/") == "":
            msg = "the root folder of a machine; give a folder below it, such as /data/answers/"
            raise ValueError(msg)
        return uri


MAX_REPLICAS = 10_000


class ReplicaRange(Typed):
    """A pool of replicas that grows and shrinks with the work."""

    min: int = Field(1, ge=1)
    max: int = Field(ge=1, le=MAX_REPLICAS)

    @model_validator(mode="after")
    def _ordered(self) -> "ReplicaRange":
        if self.min > self.max:
            msg = f"min ({self.min}) is above max ({self.max})"
            raise ValueError(msg)
        return self


class ResourcesSpec(Typed):
    """What a replica runs on."""

    device: Literal["auto", "gpu", "cpu"] = Field(
        "auto", description="auto: GPUs, unless the cluster neither has any nor can start any"
    )
    accelerator_type: Text | None = Field(None, description="Ray's name of the GPU model, such as A10G or H100")
    engines_per_gpu: Literal["auto"] | Annotated[int, Field(ge=1, le=16)] = Field(
        "auto",
        description="engines that share each GPU, where tensor_parallel_size is 1; auto: several for a small model",
    )

    @property
    def engines(self) -> int:
        """The same, where it is decided; else 1."""
        return 1 if self.engines_per_gpu == "auto" else self.engines_per_gpu


class ChatSpec(Typed):
    """How messages become a prompt; what is left out is the model's own way."""

    system_prompt: str | None = Field(None, description="put before the messages of a row that has none of its own")
    chat_template: Text | None = Field(None, description="a Jinja chat template in place of the model's")
    tool_call_parser: Text | None = Field(None, description="vLLM's parser for calls of tools (OpenAI input)")
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict, description="values for the chat template")
    add_generation_prompt: bool = Field(default=True, description="end with the beginning of an answer")
    continue_final_message: bool = Field(default=False, description="go on with the last message, not with a new one")

    @model_validator(mode="after")
    def _one_end(self) -> "ChatSpec":
        if self.continue_final_message and self.add_generation_prompt:
            msg = "continue_final_message needs add_generation_prompt: false"
            raise ValueError(msg)
        return self


class LoraSpec(Typed):
    """LoRA adapters that rows may be answered with."""

    adapters: dict[Text, Text] = Field(min_length=1, description="name to folder on the nodes, hub id or s3:// prefix")
    default: str | None = Field(None, description="the adapter of rows that name none; null: the model alone")

    @model_validator(mode="after")
    def _known(self) -> "LoraSpec":
        if self.default is not None and self.default not in self.adapters:
            msg = f"default {self.default!r} is none of the adapters: {', '.join(self.adapters)}"
            raise ValueError(msg)
        return self


class PoolingSpec(Typed):
    """For the tasks embed, classify and score."""

    dimensions: int | None = Field(
        None, ge=1, description="task embed: length of the vectors, if the model can cut them"
    )


class OnErrorSpec(Typed):
    """What failed rows mean for the run."""

    max_error_rate: float = Field(0.05, ge=0, le=1, description="exit code 3 if a larger share of the rows failed")
    prompt_too_long: Literal["error", "truncate_left", "truncate_right"] = Field(
        "error", description="what becomes of a prompt longer than max_model_len; truncate_left keeps its end"
    )


class RetrySpec(Typed):
    """How often a run is tried."""

    max_attempts: int = Field(
        3, ge=1, le=20, description="Ray jobs that one run may use, where the cluster fails or has no room"
    )
    engine_timeout: Duration = Field(
        "10m", description="an engine with work that does not end a step in this time hangs, and is started again"
    )
    request_timeout: Duration | None = Field(
        None, description="a row without an answer this long after its engine got it is given up, and becomes an error"
    )

    @property
    def engine_timeout_s(self) -> float:
        """The same in seconds."""
        return seconds(self.engine_timeout)

    @property
    def request_timeout_s(self) -> float | None:
        """The same in seconds."""
        return seconds(self.request_timeout) if self.request_timeout is not None else None


class RuntimeEnvSpec(Typed):
    """What the job's processes need beyond the cluster's own image."""

    pip: list[Text] = Field(default_factory=list, description="packages that Ray installs for the job")
    env_vars: dict[str, str] = Field(default_factory=dict, description="stored in clear by Ray: no secrets")
    secrets: dict[str, str] = Field(
        default_factory=dict,
        description="variable to where the nodes find its value: "
        "env:NAME, file:/path, ssm:/parameter or secretsmanager:name#key",
    )
    py_modules: list[Text] = Field(
        default_factory=list, description="local folders or .py files that the job's processes can import"
    )
    files: list[Text] = Field(
        default_factory=list, description="local files or folders that travel along, under files/"
    )
    image_uri: None = Field(None, description="not supported: Ray takes no image beside a package that travels")

    @field_validator("env_vars")
    @classmethod
    def _named(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or "\0" in text:
                msg = f"{name!r}: a variable's name has letters, digits and '_', and its value no NUL"
                raise ValueError(msg)
        return value

    @field_validator("secrets")
    @classmethod
    def _by_reference(cls, value: dict[str, str]) -> dict[str, str]:
        secrets.check_references(value)
        return value

    @model_validator(mode="after")
    def _said_once(self) -> "RuntimeEnvSpec":
        both = sorted(self.secrets.keys() & self.env_vars.keys())
        if both:
            msg = f"runtime_env.secrets.{both[0]}: is set under runtime_env.env_vars as well; leave one of them out"
            raise ValueError(msg)
        return self


class ClusterSpec(Typed):
    """Which cluster."""

    address: str | None = Field(None, description="the dashboard, such as http://127.0.0.1:8265")

    @field_validator("address")
    @classmethod
    def _http(cls, address: str | None) -> str | None:
        if address is not None and urlsplit(address).scheme not in {"http", "https"}:
            msg = "the Jobs API is reached by http:// or https://, such as http://head:8265"
            raise ValueError(msg)
        return address


class JobSpec(Typed):
    """One batch-inference job, validated."""

    schema_version: Literal[1] = 1
    name: str = Field("rayferry", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", description="a label for people")
    model: Text = Field(description="hub id, folder on the nodes, or s3:// prefix")
    revision: Text | None = Field(None, description="branch, tag or commit of a hub model")
    task: Literal["generate", "chat", "embed", "classify", "score"] = Field(
        "generate",
        description="generate continues the prompt; chat puts it through the model's chat template; "
        "embed gives a vector; classify a label; score how well a document fits the prompt",
    )
    input: InputSpec
    output: OutputSpec
    sampling: SamplingSpec = Field(default_factory=SamplingSpec)
    chat: ChatSpec = Field(default_factory=ChatSpec)
    pooling: PoolingSpec = Field(default_factory=PoolingSpec)
    lora: LoraSpec | None = Field(None, description="LoRA adapters")
    engine: EngineSpec = Field(default_factory=EngineSpec)
    replicas: int | ReplicaRange = Field(1, description="engines: a number, or {min, max}")
    batch_size: int = Field(32, ge=1, description="rows handed over at a time; the engine mixes batches freely")
    resources: ResourcesSpec = Field(default_factory=ResourcesSpec)
    on_error: OnErrorSpec = Field(default_factory=OnErrorSpec)
    retry: RetrySpec = Field(default_factory=RetrySpec)
    timeout: Duration | None = Field(None, description="most time from start to end, such as 90m or 6h")
    runtime_env: RuntimeEnvSpec = Field(default_factory=RuntimeEnvSpec)
    cluster: ClusterSpec = Field(default_factory=ClusterSpec)

    @model_validator(mode="after")
    def _output_apart(self) -> "JobSpec":
        for uri in self.input.uris:
            if _lies_under(self.output.uri, uri):
                msg = f"output.uri: {self.output.uri!r} lies under input.uri: the next run would read it as prompts"
                raise ValueError(msg)
        for uri in self.weights_uris:
            if _lies_under(self.output.uri, uri):
                msg = f"output.uri: {self.output.uri!r} lies under {uri!r}: the replicas would fetch it with the model"
                raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _gpus_fit(self) -> "JobSpec":
        if self.resources.engines > 1 and self.engine.world_size > 1:
            msg = (
                f"resources.engines_per_gpu: {self.resources.engines} engines cannot share a GPU where each needs "
                f"{self.engine.world_size}; leave it out, or set tensor_parallel_size and pipeline_parallel_size to 1"
            )
            raise ValueError(msg)
        if self.resources.engines > 1 and not isinstance(self.replicas, int):
            msg = "resources.engines_per_gpu: engines can share a GPU where replicas is a number, not {min, max}"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _task_fits(self) -> "JobSpec":
        generating = self.task in GENERATING
        if not generating and self.sampling != SamplingSpec():
            msg = f"sampling: has no meaning for task {self.task}; leave it out"
            raise ValueError(msg)
        if self.task != "embed" and self.pooling != PoolingSpec():
            msg = f"pooling: has no meaning for task {self.task}; leave it out"
            raise ValueError(msg)
        if self.task != "chat" and self.chat != ChatSpec() and self.input.format != "openai":
            msg = f"chat: has no meaning for task {self.task}; set task: chat, or leave it out"
            raise ValueError(msg)
        if self.task != "chat" and self.input.messages_column is not None:
            msg = f"input.messages_column: messages need task: chat, not {self.task}"
            raise ValueError(msg)
        if self.task == "chat" and self.input.token_ids_column is not None:
            msg = "input.token_ids_column: token ids pass by the chat template; set task: generate"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _columns_fit(self) -> "JobSpec":
        generating = self.task in GENERATING
        if (self.task == "score") != (self.input.document_column is not None):
            msg = (
                "input.document_column: required for task score"
                if self.task == "score"
                else f"input.document_column: has no meaning for task {self.task}; leave it out"
            )
            raise ValueError(msg)
        for name in ("sampling_column", "image_column"):
            if not generating and getattr(self.input, name) is not None:
                msg = f"input.{name}: has no meaning for task {self.task}; leave it out"
                raise ValueError(msg)
        if self.input.adapter_column is not None and self.lora is None:
            msg = "input.adapter_column: names adapters, but there are none; list them under lora.adapters"
            raise ValueError(msg)
        return self

    @field_validator("replicas")
    @classmethod
    def _at_least_one(cls, value: int | ReplicaRange) -> int | ReplicaRange:
        if isinstance(value, int) and not 1 <= value <= MAX_REPLICAS:
            msg = f"from 1 to {MAX_REPLICAS:,} replicas"
            raise ValueError(msg)
        return value

    @field_validator("model")
    @classmethod
    def _model_uri(cls, value: str) -> str:
        return check_plain_uri(value) if value.startswith(("s3://", "file://")) else value

    def to_json(self) -> dict[str, Any]:
        """The job as it travels: what was set, and no defaults, so that what was left out is known there too."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True) | {"schema_version": 1}

    @property
    def weights_uris(self) -> list[str]:
        """The s3:// prefixes that the model and its adapters lie under; none of a hub id or a folder."""
        uris = (self.model, *(self.lora.adapters.values() if self.lora else ()))
        return [uri for uri in uris if uri.startswith("s3://")]

    @property
    def timeout_s(self) -> float | None:
        """Seconds that the run may take, or None."""
        return seconds(self.timeout) if self.timeout is not None else None

    @property
    def max_replicas(self) -> int:
        """Replicas that the run may grow to."""
        return self.replicas if isinstance(self.replicas, int) else self.replicas.max

    @property
    def min_replicas(self) -> int:
        """Replicas that must fit the cluster for the run to start."""
        return self.replicas if isinstance(self.replicas, int) else self.replicas.min


def _lies_under(output: str, given: str) -> bool:
    """True if a later run of an input would read what a run writes to an output."""
    place, source = (uri.removeprefix("file://").replace("s3://anonymous@", "s3://") for uri in (output, given))
    place = place.rstrip("/") + "/"
    if place.startswith(source.rstrip("/") + "/"):
        return True
    if not any(sign in source for sign in "*?["):
        return False
    from rayferry.job.storage import glob_pattern  # noqa: PLC0415  # Arrow, only where it is used

    written = ("data/a.parquet", "errors/a.parquet", "openai/a.jsonl", "_meta/manifest.json")
    return any(glob_pattern(source).match(place + name) for name in written)


def parse(data: object, origin: str) -> JobSpec:
    """Validates what a job file holds.

    Args:
        data: the file's content, as Python values.
        origin: where it came from, for the message.

    Raises:
        SpecError: naming origin, path, value and, for an unknown key, the nearest known one; of a secret, its path and
            kind alone.
    """
    if not isinstance(data, Mapping):
        kind = "empty" if data is None else f"a {type(data).__name__}"
        msg = f"{origin}: a job file is a mapping of keys to values, this one is {kind}; try: rayferry init"
        raise SpecError(msg)
    leaked = leaks.find(data)
    if leaked:
        raise SpecError("\n".join(f"{origin}: {line}" for line in leaked))
    try:
        return JobSpec.model_validate(dict(data))
    except ValidationError as error:
        lines = explain(error.errors(include_url=False), JobSpec)
        raise SpecError("\n".join(f"{origin}: {leaks.mask(line)}" for line in lines)) from error
