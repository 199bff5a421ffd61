"""What the parts of the job file share: strict models, and URIs."""

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

_BUCKET = re.compile(r"^[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]$")


Text = Annotated[str, Field(pattern=r"\S")]  # with more in it than blanks


class Typed(BaseModel):
    """Unknown keys are errors; values are not coerced across kinds; instances do not change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


def check_uri(uri: str) -> str:
    """Returns `uri` if it names a place that Rayferry can read or write.

    Accepts `s3://bucket/key`, `s3://anonymous@bucket/key`, `file:///path` and `/path`.

    Raises:
        ValueError: the text is none of these.
    """
    if uri.startswith("s3://"):
        bucket = uri.removeprefix("s3://").partition("/")[0].removeprefix("anonymous@")
        if not _BUCKET.match(bucket):
            msg = f"{bucket!r} is not a bucket name; write s3://bucket/prefix/"
            raise ValueError(msg)
        return uri
    parts = urlsplit(uri)
    if parts.scheme not in {"", "file"} or parts.netloc or not parts.path.startswith("/"):
        msg = "not a URI that can be used here; write s3://bucket/prefix/ (or an absolute path on the cluster's nodes)"
        raise ValueError(msg)
    return uri


def check_plain_uri(uri: str) -> str:
    """The same for a place that is one place: no `?` or `#`, which elsewhere would be settings.

    Raises:
        ValueError: see `check_uri`, or one of these is in it.
    """
    check_uri(uri)
    if "?" in uri or "#" in uri:
        msg = "a URI may not carry '?' or '#'; set endpoint and region by AWS_ENDPOINT_URL and AWS_REGION"
        raise ValueError(msg)
    return uri
