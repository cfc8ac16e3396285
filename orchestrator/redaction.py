"""Keeps secrets out of what is shown, logged or kept: those in URIs and queries, and those of the environment."""

from __future__ import annotations

import os
import re

HIDDEN = "***"

_FROM_THE_ENVIRONMENT = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "DATABRICKS_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "RAY_AUTH_TOKEN",
)
_FEWEST = 6
"""Letters of a secret: a shorter one would be found in words."""

# Whoever wrote a text may have made it long to keep these busy: no part of a pattern is without an end, and those that
# may begin anywhere begin at a word's start. One slash, where a path was made of a URI.
_USER = re.compile(
    r"(?P<scheme>\b[a-zA-Z][a-zA-Z0-9+.-]{0,30}:/{1,2}|(?<![^\s'\"(=]))"
    r"(?P<user>[^\s@/:=]{0,256}:(?!/)\S{0,1024})@(?P<rest>\S*)"
)
_NAME = re.compile(r"(:/{1,2})[^\s/@]{1,1024}@")
_QUERY = re.compile(r"(:/{1,2}[^\s?#]{0,1024})[?#]\S*")
_FIELD = re.compile(
    r"(?<![\w-])([\w-]{0,64}(?:token|passw(?:or)?d|secret|api_?key|access_?key|signature)[\w-]{0,64}=)[^\s&]+",
    re.I,
)
_HEADER = re.compile(r"\b(Bearer|Basic) [\w+/=.~-]{6,}")


def redacted(text: str) -> str:
    """A URI, or text with URIs in it, without users, passwords, queries and what the environment holds of secrets."""
    for name in _FROM_THE_ENVIRONMENT:
        secret = os.environ.get(name, "").strip()
        if len(secret) >= _FEWEST:
            text = text.replace(secret, HIDDEN)
    text = _NAME.sub(rf"\1{HIDDEN}@", _USER.sub(_without_user, text))
    text = _FIELD.sub(rf"\1{HIDDEN}", _QUERY.sub(r"\1", text))
    return _HEADER.sub(rf"\1 {HIDDEN}", text)


def _without_user(found: re.Match[str]) -> str:
    # an @ behind a question mark may be one of a password or of a query
    rest = "" if "?" in found["user"] else f"@{found['rest']}"
    return f"{found['scheme']}{HIDDEN}{rest}"
