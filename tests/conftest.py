"""One cache of compiled kernels for all test runs from this checkout, apart from the user's own."""

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    os.environ.setdefault("NUMBA_CACHE_DIR", str(config.rootpath / ".pytest_cache" / "numba"))
