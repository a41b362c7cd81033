"""Files that a user names to be written: whole or not at all, through no link, over nobody else's."""

import os
import resource
import subprocess
import sys
from types import SimpleNamespace

import pytest

from lapinfer import outputs
from lapinfer.errors import InputError
from lapinfer.report import outputs as reports
from lapinfer.report.document import document
from lapinfer.report.experts import to_npz


def names(folder):
    return sorted(os.listdir(folder))


def test_a_new_file_and_its_mode(tmp_path):
    path = tmp_path / "new.txt"
    assert outputs.check_place(path) is None
    umask = os.umask(0o027)
    try:
        outputs.write_whole(path, "text")
    finally:
        os.umask(umask)
    assert (path.read_text(), names(tmp_path)) == ("text", ["new.txt"])
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("leads", ["to a file", "to a report", "to nothing"])
def test_links_are_not_followed(tmp_path, leads):
    target, link = tmp_path / "target.html", tmp_path / "link.html"
    page = document("t", "i", []).encode()
    if leads != "to nothing":
        target.write_bytes(page if leads == "to a report" else b"somebody's")
    before = target.read_bytes() if target.exists() else None
    link.symlink_to(target)
    with pytest.raises(InputError, match=r"link\.html is there already: a link to .*target\.html, not written by"):
        reports.write_whole(link, page)
    assert reports.check_ending(link, (".html",), force=True) == f"{link}, a link to {target}"
    reports.write_whole(link, page, force=True)
    assert not link.is_symlink()
    assert link.read_bytes() == page
    assert (target.read_bytes() if target.exists() else None) == before


def test_a_hard_link_is_parted_and_its_other_name_stays(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"weights")
    os.link(tmp_path / "weights.safetensors", tmp_path / "r.json")
    with pytest.raises(InputError, match="not written by lapinfer"):
        reports.write_whole(tmp_path / "r.json", b"{}")
    reports.write_whole(tmp_path / "r.json", b"{}", force=True)
    assert (tmp_path / "weights.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize("force", [False, True])
def test_folders_and_pipes_are_not_written_to(tmp_path, force):
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(InputError, match="is a folder; name a file"):
        reports.check_ending(tmp_path / "folder.html", (".html",), force=force)
    os.mkfifo(tmp_path / "pipe.html")
    with pytest.raises(InputError, match="is a device or a pipe"):
        reports.check_ending(tmp_path / "pipe.html", (".html",), force=force)


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/null"])
def test_what_is_no_name_of_a_report_is_refused_in_words(name, tmp_path):
    with pytest.raises(InputError, match=r"expected a name that ends with \.html"):
        reports.check_ending(outputs.Path(name), (".html",))


@pytest.mark.parametrize(
    ("ending", "ours", "others"),
    [
        (".html", document("t", "i", []).encode(), b"<!DOCTYPE html><title>notes on lapinfer 0.1.0</title>"),
        (".json", b'{"lapinfer": "0.1.0", "x": 1}', b'{"by": "lapinfer", "lapinfer": 1}'),
        (".json", b'{\n "lapinfer": "0.1.0"\n}', b'[{"lapinfer": 1}]'),
        (".png", b"\x89PNG\r\n\x1a\n....IHDR....tEXtSoftware\0lapinfer 0.1.0", b"\x89PNG....tEXtSoftware\0Matplotlib"),
        (".npz", to_npz(SimpleNamespace(arrays=dict)), b"PK\x03\x04...load.npy"),
    ],
)
def test_only_reports_are_replaced(tmp_path, ending, ours, others):
    path = tmp_path / f"r{ending}"
    path.write_bytes(ours)
    assert reports.check_ending(path, (ending,)) is None
    reports.write_whole(path, ours + b" ")
    assert path.read_bytes() == ours + b" "
    for content in (others, b""):
        path.write_bytes(content)
        with pytest.raises(InputError, match="not written by lapinfer"):
            reports.check_ending(path, (ending,))
        with pytest.raises(InputError, match="not written by lapinfer"):
            reports.write_whole(path, ours)
        assert path.read_bytes() == content


def test_a_file_that_comes_meanwhile_is_seen(tmp_path):
    path = tmp_path / "r.html"
    reports.check_ending(path, (".html",))
    path.write_text("written while the report was made")
    with pytest.raises(InputError, match="not written by lapinfer"):
        reports.write_whole(path, document("t", "i", []).encode())
    assert path.read_text() == "written while the report was made"


FULL = """
import resource, signal, sys
from pathlib import Path
from lapinfer.errors import InputError
from lapinfer.outputs import write_whole
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_whole(Path(sys.argv[1]), bytes(1_000_000))
except InputError as error:
    print(error)
"""


def test_a_disk_that_fills_up_leaves_what_was_there(tmp_path):
    path = tmp_path / "r.html"
    path.write_text("before")
    done = subprocess.run([sys.executable, "-c", FULL, path], capture_output=True, text=True, check=True)
    assert done.stdout == f"{path}: cannot be written: File too large\n"
    assert (path.read_text(), names(tmp_path)) == ("before", ["r.html"])
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100_000


def test_an_interruption_leaves_what_was_there(tmp_path):
    path = tmp_path / "r.html"
    path.write_text("before")

    def stopped():
        with outputs.whole_file(path) as part:
            part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert (path.read_text(), names(tmp_path)) == ("before", ["r.html"])


def test_parents_that_are_missing_or_files(tmp_path):
    (tmp_path / "file").touch()
    for parent in ("nowhere", "file"):
        path = tmp_path / parent / "r.html"
        with pytest.raises(InputError, match=rf"r\.html: cannot be written: its folder .*{parent} is not there"):
            reports.check_ending(path, (".html",))
        with pytest.raises(InputError, match="cannot be written"):
            outputs.write_whole(path, b"")
