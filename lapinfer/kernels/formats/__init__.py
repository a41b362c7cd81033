"""How kernels read each weight format: one file per format, under its name (layouts: lapinfer/quant/formats)."""

from importlib import import_module

from lapinfer.kernels.reader import Reader
from lapinfer.quant.formats import FORMATS

READERS: dict[str, Reader] = {name: import_module(f"{__name__}.{name}").READER for name in FORMATS}
