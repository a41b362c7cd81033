"""What all tests share: a cache of compiled kernels apart from the user's own, and a Ctrl-C that arrives."""

import os
import signal

import pytest


def pytest_configure(config: pytest.Config) -> None:
    # No test cuts the power; what a killed process has written stays. Thousands of tiny files would wait for a disk.
    os.fsync = lambda fd: None
    os.environ.setdefault("NUMBA_CACHE_DIR", str(config.rootpath / ".pytest_cache" / "numba"))
    # A shell that starts the suite in the background has Ctrl-C ignored, and so would every process that tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The file that takes longest first: with two processes, one would wait for it at the end."""
    items.sort(key=lambda item: item.path.name != "test_isa.py")


@pytest.fixture
def kept_while_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows: what is open or mapped is neither renamed, replaced nor removed."""
    import other_systems

    from lapinfer import calibration, outputs
    from lapinfer.packing import writer
    from lapinfer.storage import owned

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("sees open files as Linux tells of them")
    for module in (outputs, writer, calibration, owned):
        monkeypatch.setattr(module, "KEPT_WHILE_OPEN", True)
    other_systems.keep_open_files(monkeypatch.setattr)


@pytest.fixture(scope="module")
def one_torch_thread():
    """PyTorch with one thread: small trainings are no faster with more, and much slower beside others."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
