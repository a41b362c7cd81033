"""Where a report goes: a page, its data, pictures; checked before the work, written whole."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from lapinfer.errors import InputError
from lapinfer.report.experts import check_path, write_whole
from lapinfer.report.measured import Report, to_json
from lapinfer.report.page import page

PAGES = (".html", ".htm")


def check(output: Path, data: Path | None = None, png: Path | None = None) -> None:
    """InputError when something of it could not be written."""
    check_path(output, PAGES)
    if data is not None:
        check_path(data, (".json",))
    if png is None:
        return
    if find_spec("matplotlib") is None:
        raise InputError("--png needs matplotlib: pip install matplotlib")
    if png.exists() and not png.is_dir():
        raise InputError(f"{png} is a file; name a folder for the pictures")
    try:
        png.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{png}: cannot be made: {error.strerror or error}") from error
    check_path(png / "roofline.png", (".png",))


def write(report: Report, output: Path, data: Path | None = None, png: Path | None = None) -> list[Path]:
    """The files written. Data first: the page can be made from it again."""
    written: list[Path] = []
    if data is not None:
        write_whole(data, to_json(report).encode())
        written.append(data)
    write_whole(output, page(report).encode())
    written.append(output)
    if png is not None:
        from lapinfer.report.pictures import pictures

        for name, content in pictures(report).items():
            write_whole(png / name, content)
            written.append(png / name)
    return written
