"""Failures of requests to object stores: which a repetition may mend, and their reasons in words.

The libraries of Google's and Amazon's stores raise errors of their own, of HTTP and of Python.
"""

import re
from collections.abc import Iterator

from unclip_jax.core.checks import UserError

EXTRAS = {"gs": "gcs", "s3": "s3"}  # scheme -> extra of the installation that reads it
TRIES = 3  # of a request

_LOGIN = {
    "gs": "log in with `gcloud auth application-default login`, or set "
    "GOOGLE_APPLICATION_CREDENTIALS",
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
}
# Codes of Amazon's store (docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html), and types
# of errors of the libraries.
_CREDENTIALS = {
    *("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "InvalidAccessKeyId"),
    *("SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired"),
    *("DefaultCredentialsError", "RefreshError"),
}
_REGION = {
    *("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"),
    *("301", "307"),
}
_QUOTA = {"SlowDown", "RequestLimitExceeded"}


def is_final(error: BaseException) -> bool:
    """True if the same request will fail again."""
    kinds = (FileNotFoundError, PermissionError, ImportError, UserError, NotADirectoryError)
    if _over_quota(error):
        return False
    rejected = _forbidden(error) or _code(error) in range(400, 408)
    return isinstance(error, kinds) or rejected or bool(_names(error) & (_CREDENTIALS | _REGION))


def _forbidden(error: BaseException) -> bool:
    """True if the store rejects this account."""
    forbidden = isinstance(error, OSError) and str(error).startswith("Forbidden")  # of gcsfs
    return isinstance(error, PermissionError) or forbidden or _code(error) == 403


def _over_quota(error: BaseException) -> bool:
    """True if there are too many requests; Google's store says so with status 403 too."""
    limited = re.search("quota|rate.?limit", str(error), re.IGNORECASE)
    stated = _code(error) == 429 or bool(_names(error) & _QUOTA)
    return stated or (limited is not None and _forbidden(error))


def _names(error: BaseException) -> set[str]:
    """Returns the types of an error and its causes, and the codes of Amazon's store in them."""
    names = set()
    for each in _causes(error):
        names.add(type(each).__name__)
        response = getattr(each, "response", None)
        if isinstance(response, dict):
            names.add(str(response.get("Error", {}).get("Code")))
    return names


def _code(error: BaseException) -> int:
    """Returns the status of an HTTP response that an error reports; 0 = none."""
    for each in _causes(error):
        code = getattr(each, "code", None) or getattr(each, "status", None)
        response = getattr(each, "response", None)
        if code is None and isinstance(response, dict):
            code = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        with_digits = str(code) if code is not None else ""
        if with_digits.isdigit():
            return int(with_digits)
    return 0


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yields an error and what it was raised from."""
    cause: BaseException | None = error
    for _ in range(8):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__ or cause.__context__


def reason(error: BaseException, scheme: str) -> str:
    """Returns why a request failed and what to do, as the end of a message of one line."""
    code = _code(error)
    if isinstance(error, ImportError):
        package = f"unclip_jax[{EXTRAS[scheme]}]"
        return f"the library for {scheme}:// is missing; pip install '{package}'."
    if code == 401 or _names(error) & _CREDENTIALS:
        return f"there are no valid credentials for it; {_LOGIN[scheme]}."
    if _names(error) & _REGION:
        return (
            f"the bucket is in another region ({_line(error)}); set AWS_DEFAULT_REGION to its own."
        )
    if _over_quota(error):
        return f"too many requests ({_line(error)}); wait, use fewer workers, or raise the quota."
    if _forbidden(error):
        return f"permission denied ({_line(error)}); give this account access to the bucket."
    if isinstance(error, FileNotFoundError) or code == 404:
        return "no such object or bucket; check the name."
    return f"{_line(error)} ({TRIES} tries); check the connection and run the same command again."


def _line(error: BaseException) -> str:
    """Returns an error on one line, shortened."""
    text = " ".join(str(error).split()) or type(error).__name__
    return (text if len(text) <= 240 else text[:240] + "...").rstrip(".")
