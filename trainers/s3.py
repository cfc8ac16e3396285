"""s3fs whose every failure is an OSError: botocore's own are none, and would end threads that bear with OSErrors.

Imports s3fs, of the extra `s3`; `trainers.locations` imports this module where a URL asks for it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

from aiohttp import ClientError as HttpError
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem

_CALLS = (
    "_call_s3", "_info", "_exists", "_ls", "_lsdir", "_find", "_cat_file", "_get_file", "_pipe_file", "_put_file",
    "_cp_file", "_rm", "_rm_file", "_bulk_delete", "_mkdir", "_makedirs",
)  # fmt: skip


def _telling_os_errors(call: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
    @wraps(call)
    async def told(*args: Any, **kwargs: Any) -> Any:
        try:
            return await call(*args, **kwargs)
        except NoCredentialsError:
            sentence = "no keys for the object store (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
            raise PermissionError(errno.EACCES, sentence) from None
        except (BotoCoreError, ClientError, HttpError, TimeoutError) as error:
            raise OSError(errno.EIO, f"no answer from the object store ({type(error).__name__})") from None

    return told


class S3(S3FileSystem):
    """As s3fs's, otherwise."""


for _name in _CALLS:
    setattr(S3, _name, _telling_os_errors(getattr(S3FileSystem, _name)))
S3.call_s3 = sync_wrapper(S3._call_s3)
