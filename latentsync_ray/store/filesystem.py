"""Filesystems by URI, as pyarrow knows them."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlencode, urlsplit

import pyarrow.fs

from latentsync_ray.config.errors import UserError

OBJECT_STORES = (pyarrow.fs.S3FileSystem, pyarrow.fs.GcsFileSystem)
"""They have no folders, and show a file only when all of it is there."""
_S3_ATTEMPTS = 11
"""With pauses of 0.025 s, 0.05 s and so on: after 51 seconds a storage that cannot be reached is given up."""
_GS_SECONDS = 60
_SECRETS = frozenset(("access_key", "secret_key", "session_token", "access_token"))
_BUSY = ("SLOW_DOWN", "INTERNAL_FAILURE", "SERVICE_UNAVAILABLE", "NETWORK_CONNECTION", "REQUEST_TIMEOUT", "curlCode")
"""Parts of the errors of Arrow's S3 filesystem (arrow/filesystem/s3_internal.h) and of its HTTP client."""
_FLAGS: dict[str, str | bool] = {"true": True, "false": False}


def open_filesystem(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The filesystem of a URI and the path in it; an object store gets patience with a busy server, in bounds.

    Raises:
        OSError, ValueError: It cannot be used, with the reason.
    """
    address = urlsplit(uri)
    options = dict(parse_qsl(address.query))
    if address.scheme in ("gs", "gcs"):
        options.setdefault("retry_limit_seconds", str(_GS_SECONDS))
        uri = address._replace(query=urlencode(options)).geturl()
    filesystem, root = pyarrow.fs.FileSystem.from_uri(uri)
    if address.scheme == "s3":  # a URI can say nothing about retries
        arguments = {name: _FLAGS.get(value, value) for name, value in options.items()}
        arguments["region"] = filesystem.region
        filesystem = pyarrow.fs.S3FileSystem(
            # Not the standard strategy: its quota is never given back, so that after 100 retries it makes no more.
            retry_strategy=pyarrow.fs.AwsDefaultS3RetryStrategy(max_attempts=_S3_ATTEMPTS),
            allow_delayed_open=True,  # one request for a small file instead of three
            **arguments,
        )
    return filesystem, root


def refuse_credentials(uri: str) -> None:
    """Refuses keys in a URI, which is printed, stored and passed to other processes.

    Raises:
        UserError: There are some; they are not repeated.
    """
    if "://" not in uri:
        return
    place, _, rest = uri.partition("://")
    names = {name.lower() for name, _ in parse_qsl(urlsplit(uri).query)}
    if "@" in rest.partition("/")[0] or names & _SECRETS:
        raise UserError(
            f"storage {place}://...: must not hold credentials, since it is printed and stored; put them where "
            "Arrow finds them (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws/credentials, a role of the node; "
            "GOOGLE_APPLICATION_CREDENTIALS)"
        )


def is_busy(error: OSError) -> bool:
    """Whether an object store says that it, or the way to it, is overloaded or away for now."""
    return error.errno is None and any(mark in str(error) for mark in _BUSY)


def reason_of(error: Exception) -> str:
    """What an error of a filesystem says, in one line."""
    return getattr(error, "strerror", None) or " ".join(str(error).split())
