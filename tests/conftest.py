"""One cache of compiled kernels for all test runs from this checkout, apart from the user's own."""

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    os.environ.setdefault("NUMBA_CACHE_DIR", str(config.rootpath / ".pytest_cache" / "numba"))


@pytest.fixture(scope="module")
def one_torch_thread():
    """PyTorch with one thread: small trainings are no faster with more, and much slower beside others."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
