"""A picture of what training sees: images as they are, and beside each a few of its augmented forms."""

import io

import jax
import numpy as np
from PIL import Image

from jsae.classifier import train
from jsae.data import order
from jsae.data.augment import IMAGENET_MEAN, IMAGENET_STD
from jsae.data.cache import Split

_N_IMAGES, _N_FORMS, _GAP_PX = 8, 9, 2


def augmentation_grid(split: Split, recipe: train.Recipe, seed: int) -> bytes:
    """PNG: a row for each of the first images of the training order, first as it is, then augmented.

    The forms are those of the first steps, had these images made up their batches.
    """
    rows = order.batch_indices(seed, 0, len(split.labels), min(_N_IMAGES, len(split.labels)))
    batch = {"image": split.images[rows], "label": split.labels[rows], "index": rows.astype(np.int32)}

    @jax.jit
    def forms(batch):
        def form(step):
            key = jax.random.fold_in(jax.random.key(seed), step)
            return train.augmented(key, batch, len(split.class_names), recipe)[0]

        return jax.lax.map(form, np.arange(_N_FORMS))  # [forms, B, S, S, 3]

    pixels = np.asarray(forms(batch)) * np.asarray(IMAGENET_STD) + np.asarray(IMAGENET_MEAN)
    pixels = np.clip(np.round(255 * pixels), 0, 255).astype(np.uint8)
    grid = np.concatenate([batch["image"][None], pixels])  # [1 + forms, B, S, S, 3]
    grid = np.pad(grid, ((0, 0), (0, 0), (0, _GAP_PX), (0, _GAP_PX), (0, 0)), constant_values=255)
    grid = np.concatenate(list(np.concatenate(list(grid), axis=2)), axis=0)
    file = io.BytesIO()
    Image.fromarray(grid).save(file, "PNG")
    return file.getvalue()
