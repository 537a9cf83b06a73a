"""Retries of storage requests: retryable errors, backoff, and messages."""

import email.utils
import errno
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from walloc_data.errors import StorageError, WallocDataError
from walloc_data.text import printable

__all__ = [
    "DEFAULT_RETRY_SECONDS", "Retry", "error_chain", "is_absence", "is_retryable", "reason", "remedy", "retry_after_s",
]  # fmt: skip

Result = TypeVar("Result")

DEFAULT_RETRY_SECONDS = 120.0
_LOG_AGAIN_AFTER_S = 60.0
# Not retried: the request is invalid or definitely refused.
_FINAL = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    FileExistsError,
    ImportError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    NotImplementedError,
)
# Exceptions of botocore without a common base class.
_FINAL_NAMES = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ParamValidationError"}
_ASK_AGAIN_STATUS = {307, 408, 425, 429}  # temporary redirect, request timeout, too early, too many requests
# S3's error codes for transmission errors, whose status 400 would mean an invalid request.
_ASK_AGAIN_CODES = {
    "BadDigest",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "OperationAborted",
    "RequestTimeout",
    "SlowDown",
    "XAmzContentSHA256Mismatch",
}


@dataclass
class Retry:
    """Retry policy of a store.

    Args:
        max_attempts: attempts per operation, with jittered exponential backoff between them.
        max_seconds: no attempt starts later than this after the first.

    Example:
        >>> from walloc_data.storage import Retry
        >>> answers = iter([ConnectionResetError("by peer"), b"data"])
        >>> def read():
        ...     answer = next(answers)
        ...     if isinstance(answer, Exception):
        ...         raise answer
        ...     return answer
        >>> Retry(max_attempts=2)(read, what="reading s3://bucket/my-latents/walloc.json")
        b'data'
    """

    max_attempts: int = 12
    max_seconds: float = DEFAULT_RETRY_SECONDS
    _logged_at: float = field(default=float("-inf"), repr=False)

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise StorageError(f"max_attempts must be at least 1, not {self.max_attempts}")

    def __call__(self, action: Callable[[], Result], *, what: str) -> Result:
        """Run an action until it succeeds, fails with a permanent error, or has used all attempts.

        The first retry is logged, at most once a minute.

        Args:
            action: function to call, which raises any exception on failure.
            what: description of the request for messages, such as "reading s3://bucket/my-latents/walloc.json".

        Raises:
            StorageError: the message has `what`, the last reason, and the remedy if known.
        """
        began, what = time.monotonic(), printable(what, newlines=False)
        for attempt in range(1, self.max_attempts + 1):
            try:
                return action()
            except WallocDataError:
                raise
            except Exception as error:  # each client library has its own exceptions
                if not is_retryable(error):
                    raise StorageError(f"{what}: {reason(error)}") from error
                # Jitter keeps a thousand workers from retrying at the same instant.
                delay = random.uniform(0.5, 1.0) * min(20.0, 0.25 * 2**attempt)
                if (asked := retry_after_s(error)) is not None:
                    delay = max(delay, asked)
                spent = time.monotonic() - began
                if attempt == self.max_attempts or spent + delay > self.max_seconds:
                    later = f"; it asks to wait {asked:.0f} s" if asked else ""
                    raise StorageError(
                        f"{what}: failed {attempt} times in {spent:.0f} s, last with {reason(error)}{later}"
                    ) from error
                self._log(what, error)
                time.sleep(delay)
        raise AssertionError("unreachable")

    def _log(self, what: str, error: BaseException) -> None:
        if time.monotonic() - self._logged_at > _LOG_AGAIN_AFTER_S:
            self._logged_at = time.monotonic()
            logging.getLogger(__name__).warning(
                "%s: %s. Retrying for up to %.0f s", what, printable(reason(error)), self.max_seconds
            )


def error_chain(error: BaseException) -> Iterator[BaseException]:
    """Return an error and its causes, among which client libraries have the original response."""
    seen = 0
    link: BaseException | None = error
    while link is not None and seen < 8:
        yield link
        seen += 1
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


@dataclass(frozen=True)
class _Answer:
    status: int | None = None
    code: str | None = None  # S3's name for the error
    headers: Mapping[str, Any] = field(default_factory=dict)


def _answer(error: BaseException) -> _Answer:
    """Return status and code of the server's response, from the exception of any client library."""
    for link in error_chain(error):
        response = getattr(link, "response", None)
        if isinstance(response, Mapping):  # botocore's ClientError
            about = response.get("ResponseMetadata") or {}
            code = (response.get("Error") or {}).get("Code")
            return _Answer(about.get("HTTPStatusCode"), code, about.get("HTTPHeaders") or {})
        for status in (getattr(link, "status", None), getattr(response, "status_code", None)):
            if isinstance(status, int):
                headers = getattr(response, "headers", None) or getattr(link, "headers", None)
                return _Answer(status, None, headers or {})
    return _Answer()


def is_retryable(error: BaseException) -> bool:
    """Return whether the same request may succeed later.

    Refusals (301, 401, 403, 404, invalid bucket names, missing credentials) are permanent; broken connections,
    time-outs, 5xx and throttling are transient.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return False  # an error of the local disk
    answer = _answer(error)
    if answer.code in _ASK_AGAIN_CODES:
        return True
    if answer.status is not None and (300 <= answer.status < 500 or answer.status == 501):
        return answer.status in _ASK_AGAIN_STATUS
    if isinstance(error, FileNotFoundError):
        return not is_absence(error)
    return not isinstance(error, _FINAL) and type(error).__name__ not in _FINAL_NAMES


def is_absence(error: BaseException) -> bool:
    """Return whether an error says that a file is not there.

    fsspec's HTTP client raises FileNotFoundError for every failure to learn a file's size; its cause tells them apart.
    """
    if not isinstance(error, FileNotFoundError):
        return False
    status = _answer(error).status
    if status is not None:
        return status in (404, 410)
    return error.__cause__ is None or isinstance(error.__cause__, _FINAL)


def retry_after_s(error: BaseException) -> float | None:
    """Return the seconds to wait, from the server's Retry-After header (seconds or a date)."""
    headers = {str(name).lower(): value for name, value in _answer(error).headers.items()}
    value = str(headers.get("retry-after", "")).strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time()) if value else None
    except (ValueError, OverflowError):
        return None


def reason(error: BaseException) -> str:
    """Return one line about an error, with its remedy if known."""
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None and not is_absence(error):
        return reason(error.__cause__)
    name = type(error).__name__
    if isinstance(error, OSError) and error.strerror and error.filename:  # of the system; the caller names the file
        return error.strerror
    text = " ".join(str(error).split()).rstrip(".")
    inner = ""
    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # its own message only names the file
        inner = f" ({reason(error.__cause__)})"
    return (f"{name}: {text}" if text else name) + inner + remedy(error)


def remedy(error: BaseException) -> str:
    """Return the remedy for common refusals."""
    name, answer = type(error).__name__, _answer(error)
    if name in ("NoCredentialsError", "PartialCredentialsError"):
        return (
            ". Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile in ~/.aws; for a public bucket give "
            "storage_options={'anon': True} or --storage-options (AWS_ENDPOINT_URL names a store that is not Amazon's)"
        )
    if name == "ProfileNotFound":
        return ". AWS_PROFILE names a profile that is not in ~/.aws/config"
    if answer.code == "InvalidBucketName":
        return ". The name of the bucket, after s3://, must be 3 to 63 characters of a-z, 0-9, '.' and '-'"
    if answer.status in (301, 308) or answer.code == "AuthorizationHeaderMalformed":
        return (
            ". The bucket is in another region or at another endpoint: set AWS_DEFAULT_REGION, or AWS_ENDPOINT_URL, to "
            "its own"
        )
    if isinstance(error, PermissionError) and error.errno is None:  # of a store; errors of the system have a number
        return ". The credentials are wrong, have expired, or do not allow this"
    if isinstance(error, FileNotFoundError) and answer.code in ("NoSuchKey", "NoSuchBucket", "404"):
        return ". Check the URL, whether the upload is complete, and AWS_ENDPOINT_URL"
    return ""
