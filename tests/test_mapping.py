"""Pages of mapped files: what has been read is let go, and comes back when it is read again."""

import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lapinfer.checkpoint.mapping import let_go
from lapinfer.checkpoint.safetensors import SafetensorsFile

STATUS = Path("/proc/self/status")


def mapped_megabytes():
    """Pages of files that this process holds."""
    return int(re.search(r"RssFile:\s+(\d+) kB", STATUS.read_text())[1]) / 1024


@pytest.mark.skipif(not STATUS.exists(), reason="only Linux tells how many pages of files a process holds")
def test_a_file_that_was_read_takes_no_memory(tmp_path):
    values = np.arange(1 << 24, dtype=np.float32).reshape(64, -1)  # 64 MiB
    save_file({"w": values}, tmp_path / "m.safetensors")
    file = SafetensorsFile(tmp_path / "m.safetensors")
    before = mapped_megabytes()
    for row in range(0, 64, 8):
        np.testing.assert_array_equal(file.read("w", row, row + 8), values[row : row + 8])
        assert mapped_megabytes() - before < 24, "more than two of eight slices are held"
    view = file.view("w")
    assert view.sum() > 0
    assert mapped_megabytes() - before > 32
    let_go(view)
    assert mapped_megabytes() - before < 24
    np.testing.assert_array_equal(view, values)


def test_letting_go_of_other_arrays_does_nothing(tmp_path):
    array = np.ones(5)
    let_go(array)
    let_go(array[1:3])
    let_go(np.frombuffer(b"12345678", np.uint8))
    save_file({"empty": np.zeros((0, 4), np.float32)}, tmp_path / "m.safetensors")
    let_go(SafetensorsFile(tmp_path / "m.safetensors").view("empty"))
    assert array.sum() == 5
