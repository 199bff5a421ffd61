"""What an engine is asked: one call for each prompt of a row."""

import base64
import binascii
import io
import json
import urllib.request
from typing import Any, NamedTuple

from rayferry.job import storage
from rayferry.job.rows import RowError

_FETCH_TIMEOUT_S = 60
_MAX_IMAGE_BYTES = 256 << 20


class Call(NamedTuple):
    """One prompt for the engine; a tuple, as there is one for every row.

    Attributes:
        prompt: text, or token ids.
        messages: the chat, if it is one; `prompt` says nothing then.
        document: what is scored against the prompt.
        images: decoded images (PIL).
        sampling: keyword arguments of the row's own; None: the job's.
        model_defaults: parameters that `sampling` leaves out are the model's own, as vLLM's server has it.
        adapter: name of a LoRA adapter; None: the job's default.
        chat: further arguments for the chat template.
        dimensions: length of the vector.
    """

    prompt: str | list[int]
    messages: list[dict[str, Any]] | None = None
    document: str | None = None
    images: tuple[Any, ...] = ()
    sampling: dict[str, Any] | None = None
    model_defaults: bool = False
    adapter: str | None = None
    chat: dict[str, Any] | None = None
    dimensions: int | None = None


def calls_of(prompt: str | None, request: str | None) -> list[Call]:
    """The calls of one row, by what the source wrote of it: `prompt`, and `request` as JSON.

    Raises:
        RowError: an image could not be fetched, or is none; or the request is nested too deeply.
    """
    if request is None:
        return [Call(prompt or "")]
    try:
        asked = json.loads(request)
    except (ValueError, RecursionError) as error:
        raise RowError("parse", type(error).__name__, f"the request cannot be read: {error}") from error
    if not isinstance(asked, dict):
        raise RowError("parse", "BadRequest", f"the request cannot be written as JSON: {asked}")
    openai = asked.get("openai")
    prompts = asked.get("prompts") or [asked.get("token_ids") or prompt or ""]
    return [
        Call(
            prompt=one,
            messages=asked.get("messages"),
            document=asked.get("document"),
            images=tuple(fetch_image(uri) for uri in asked.get("images", [])),
            sampling=_sampling(asked.get("sampling")),
            model_defaults=openai is not None,
            adapter=asked.get("adapter"),
            chat=asked.get("chat"),
            dimensions=asked.get("dimensions"),
        )
        for one in prompts
    ]


def _sampling(kwargs: dict[str, Any] | None) -> dict[str, Any] | None:
    """Token ids are numbers again, which JSON does not have as keys."""
    bias = (kwargs or {}).get("logit_bias")
    return (
        kwargs if kwargs is None or bias is None else kwargs | {"logit_bias": {int(at): by for at, by in bias.items()}}
    )


def fetch_image(uri: str) -> Any:
    """An image, decoded, as a PIL image in RGB.

    Args:
        uri: `s3://`, `file://`, an absolute path, `http(s)://`, or `data:` with base64.

    Raises:
        RowError: it could not be fetched (stage `read`), or is no image (stage `decode`).
    """
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415  # vLLM brings it; only the replicas need it

    content = _bytes_of(uri)
    try:
        image = Image.open(io.BytesIO(content))
        return image.convert("RGB")
    except Exception as error:  # PIL's own errors have no common class
        reason = "of no known form" if isinstance(error, UnidentifiedImageError) else f"that cannot be read: {error}"
        raise RowError("decode", type(error).__name__, f"{uri[:200]}: an image {reason}") from error


def _bytes_of(uri: str) -> bytes:
    try:
        if uri.startswith("data:"):
            return base64.b64decode(uri.partition("base64,")[2], validate=True)
        if uri.startswith(("http://", "https://")):
            with urllib.request.urlopen(uri, timeout=_FETCH_TIMEOUT_S) as answer:  # noqa: S310  # the scheme is checked
                return bytes(answer.read(_MAX_IMAGE_BYTES))
        if uri.startswith(("s3://", "file://", "/")):
            files, path = storage.filesystem(uri)
            with files.open_input_stream(path, compression=None) as stream:
                return bytes(stream.read())
    except binascii.Error as error:
        raise RowError("decode", "BadBase64", f"{uri[:80]}: {error}") from error
    except Exception as error:  # a URL that is none, a bucket without a region: they have no common class
        raise RowError("read", type(error).__name__, f"{uri[:200]}: the image cannot be fetched: {error}") from error
    raise RowError("parse", "BadImage", f"{uri[:200]!r} is no URI of an image: s3://, http(s)://, data: or a path")
