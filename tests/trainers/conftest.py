from collections.abc import Iterator

import pytest
from object_store import ObjectStore, serve


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """One for all tests of a process; buckets are a test's own."""
    with serve(tmp_path_factory.mktemp("s3")) as server:
        yield server
