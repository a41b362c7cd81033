"""Training of small language models, dense, of experts, or of fast feedforward trees, in PyTorch (extra `train`).

    from lapinfer.train import Config, read_texts, train

    result = train(Config.from_toml("fff.toml"), read_texts(["emma.txt"]), "run")
    result.checkpoint                          # the folder that lapinfer.load runs
    result.validation["ppl"]                   # of the held-out end of the texts, by the engine's definition

`export` writes a decoder of this package, `export_module` anybody's PyTorch module. docs/training.md says more.
"""

try:
    import torch as torch
except ImportError as error:
    raise ImportError("training needs PyTorch: pip install 'lapinfer[train]'") from error

from lapinfer.train.config import Config
from lapinfer.train.corpus import read_texts
from lapinfer.train.decoder import Decoder
from lapinfer.train.export import export, export_module
from lapinfer.train.loop import Trained, train

__all__ = ["Config", "Decoder", "Trained", "export", "export_module", "read_texts", "train"]
