"""TFDS builder of the drawn aircraft: draws them and writes ArrayRecord, without TensorFlow.

Features of an example:

    image        PNG, uint8 [S, S, 3] RGB
    id           "train-00042": the split and the index given to drawing.draw
    label        class label, the variant
    parts        bool [P], which parts the variant has
    part_masks   uint16 [S, S], zlib: bit p = visible pixels of part p, bit 15 = the aircraft

Splits: train, val, test, in the order of their index. To use the builder alone:

    config = SyntheticAircraftConfig(seed=0, image_size=96, n_train=3000, n_val=500, n_test=1500)
    builder = SyntheticAircraft(config=config, data_dir=..., file_format="array_record")
    builder.download_and_prepare()
    source = builder.as_data_source("train")
"""

import concurrent.futures
import dataclasses
import os

import cv2
import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from jsae.data.synthetic_aircraft import drawing

AIRCRAFT_BIT = 15
_CHUNK = 256  # images drawn ahead of the writer


@dataclasses.dataclass
class SyntheticAircraftConfig(tfds.core.BuilderConfig):
    """What is drawn: seed, side in pixels, and images of each split.

    The prepared data are kept under the config's `name`, which is made from these unless given.
    """

    name: str = ""
    seed: int = 0
    image_size: int = 96
    n_train: int = 3000
    n_val: int = 500
    n_test: int = 1500

    def __post_init__(self):
        for split, n in self.sizes().items():
            if n < 1:
                raise ValueError(f"synthetic_aircraft: n_{split} is {n}, expected at least 1 image")
        if not self.name:
            sizes = "-".join(str(n) for n in self.sizes().values())
            self.name = f"seed{self.seed}-{self.image_size}px-{sizes}"

    def sizes(self) -> dict[str, int]:
        """Images of each split."""
        return {"train": self.n_train, "val": self.n_val, "test": self.n_test}


class SyntheticAircraft(tfds.core.GeneratorBasedBuilder):
    """Drawn aircraft with part masks."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "16 variants of 14 parts."}  # noqa: RUF012 (TFDS interface)
    BUILDER_CONFIGS = [SyntheticAircraftConfig()]  # noqa: RUF012 (TFDS interface)

    # TFDS would look up this file with importlib_resources, which it does not declare
    code_path = epath.Path(__file__)

    def _info(self) -> tfds.core.DatasetInfo:
        side = self.builder_config.image_size
        features = {
            "image": tfds.features.Image(shape=(side, side, 3), encoding_format="png"),
            "id": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=[variant.name for variant in drawing.VARIANTS]),
            "parts": tfds.features.Tensor(shape=(len(drawing.PART_NAMES),), dtype=np.bool_),
            "part_masks": tfds.features.Tensor(shape=(side, side), dtype=np.uint16, encoding="zlib"),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Drawn aircraft whose variants are made of named parts, with a mask of every part.",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            metadata=tfds.core.MetadataDict(
                part_names=list(drawing.PART_NAMES), seed=self.builder_config.seed
            ),
            disable_shuffling=True,  # labels come shuffled; order is a matter of jsae.data.order
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(split, n) for split, n in self.builder_config.sizes().items()}

    def _generate_examples(self, split: str, n: int):
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, n, _CHUNK):
                indices = range(start, min(start + _CHUNK, n))
                yield from zip(
                    indices, pool.map(lambda index: self._example(split, index), indices), strict=True
                )

    def _example(self, split: str, index: int) -> dict:
        config = self.builder_config
        drawn = drawing.draw(config.seed, split, index, config.image_size)
        _, png = cv2.imencode(".png", drawn.image[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
        return {
            "image": png.tobytes(),
            "id": f"{split}-{index:05d}",
            "label": drawn.label,
            "parts": drawn.parts,
            "part_masks": pack_masks(drawn.part_masks, drawn.aircraft_mask),
        }


def pack_masks(part_masks: np.ndarray, aircraft_mask: np.ndarray) -> np.ndarray:
    """bool [P, S, S] and [S, S] -> uint16 [S, S]: bit p = part p, bit 15 = the aircraft."""
    packed = aircraft_mask.astype(np.uint16) << AIRCRAFT_BIT
    for part, mask in enumerate(part_masks):
        packed |= mask.astype(np.uint16) << part
    return packed
