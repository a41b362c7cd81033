"""How kernels read each weight format: one file per format, under its name (layouts: lapinfer/quant/formats)."""

from importlib import import_module
from importlib.util import find_spec

from lapinfer.kernels.reader import Reader
from lapinfer.quant.formats import FORMATS


def _reader(name: str) -> Reader:
    module = f"{__name__}.{name}"
    assert find_spec(module), f"format {name} has no reader: write lapinfer/kernels/formats/{name}.py"
    return import_module(module).READER


READERS: dict[str, Reader] = {name: _reader(name) for name in FORMATS}
