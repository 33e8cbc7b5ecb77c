"""Sparse autoencoders: a small pytree, pure functions on it, six variants, training, metrics and export.

    sae = jsae.sae.init(key, n_channels=768, n_features=6144, variant="topk", k=32, mean=mean, scale=scale)
    feats = sae.encode(x)      # raw activations [..., C] -> features [..., F] in raw units
    x_hat = sae.decode(feats)  # back to raw activations

`load(folder)` restores a trained one from the last checkpoint of its stage. The stage itself is
`jsae.sae.run.run(config, workdir)`; `jsae.sae.export` writes and reads SAELens' format.
"""

from jsae import lazy_modules
from jsae.sae.losses import loss
from jsae.sae.model import SAE, decode, encode, init
from jsae.sae.restore import load
from jsae.sae.variants import VARIANTS

__all__ = ["SAE", "VARIANTS", "decode", "encode", "init", "load", "loss"]

__getattr__, __dir__ = lazy_modules(__name__, __path__)
