"""The job file's `input`: where the prompts are, and what of a row is the prompt."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from rayferry.job.typed import Text, Typed, check_uri

_ANONYMOUS = "s3://anonymous@"
_FURTHER = ("document_column", "image_column", "sampling_column", "id_column", "adapter_column")
# What a prompt may be made of; one of them at most.
_PROMPTS = ("column", "template", "messages_column", "token_ids_column")


class InputSpec(Typed):
    """Where the prompts are and which part of a row is the prompt."""

    uri: str | list[str] = Field(
        description="one file, a prefix whose files are all read, a glob (*, **, ?, [...]), or a list of these"
    )
    format: Literal["auto", "text", "jsonl", "json", "csv", "tsv", "parquet", "binary", "openai"] = Field(
        "auto", description="auto decides for each file by its suffix, then by its content"
    )
    column: Text | None = Field(None, description="the column that holds the prompt; default: text, prompt or messages")
    template: Text | None = Field(None, description="a Jinja template that makes the prompt of a row's columns")
    messages_column: Text | None = Field(None, description="the column that holds chat messages, as a list or as JSON")
    token_ids_column: Text | None = Field(None, description="the column that holds the prompt as token ids")
    document_column: Text | None = Field(None, description="task score: the column that is scored against the prompt")
    image_column: Text | None = Field(None, description="the column that holds an image, or several: URIs or bytes")
    sampling_column: Text | None = Field(None, description="the column that holds sampling parameters of the row's own")
    adapter_column: Text | None = Field(None, description="the column that names the row's LoRA adapter")
    id_column: Text | None = Field(None, description="the column that names a row; default: its file and position")
    anonymous: bool = Field(default=False, description="read without credentials (also: s3://anonymous@bucket/...)")

    @field_validator("uri")
    @classmethod
    def _uris(cls, value: str | list[str]) -> str | list[str]:
        uris = [value] if isinstance(value, str) else value
        if not uris:
            msg = "the list is empty; give at least one URI"
            raise ValueError(msg)
        for uri in uris:
            try:
                check_uri(uri)
            except ValueError as error:
                msg = f"{uri}: {error}" if len(uris) > 1 else str(error)
                raise ValueError(msg) from error
        if len({(uri.startswith("s3://"), uri.startswith(_ANONYMOUS)) for uri in uris}) > 1:
            msg = "the URIs of a list must be alike: all in S3 or all paths, all anonymous or none"
            raise ValueError(msg)
        return value

    @field_validator("template")
    @classmethod
    def _template(cls, value: str | None) -> str | None:
        if value is not None:
            from rayferry.job.prompts import compile_template  # noqa: PLC0415  # Jinja, only where it is used

            compile_template(value)
        return value

    @model_validator(mode="after")
    def _one_prompt(self) -> "InputSpec":
        given = [name for name in _PROMPTS if getattr(self, name) is not None]
        if len(given) > 1:
            msg = f"give only one of {' and '.join(given)}: each says what the prompt is"
            raise ValueError(msg)
        if self.format == "openai":
            further = [*given, *(name for name in _FURTHER if getattr(self, name) is not None)]
            if further:
                msg = f"{further[0]} has no meaning for OpenAI batch files: each line's body says it all"
                raise ValueError(msg)
        return self

    @property
    def uris(self) -> list[str]:
        """The URIs, one or several."""
        return [self.uri] if isinstance(self.uri, str) else self.uri

    @property
    def says_prompt(self) -> bool:
        """True if it is said which columns a row is asked by: then rows are no OpenAI batch lines."""
        return any(getattr(self, name) is not None for name in (*_PROMPTS, *_FURTHER))

    @property
    def is_anonymous(self) -> bool:
        """True if the input is read without credentials."""
        return self.anonymous or self.uris[0].startswith(_ANONYMOUS)
