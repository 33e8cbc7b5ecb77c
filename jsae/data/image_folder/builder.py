"""TFDS builder of a folder of class folders: files -> ArrayRecord, without TensorFlow.

Features of an example:

    image   the bytes of the file, unchanged (decoding is ours, see jsae.data.decode)
    id      path of the file below the folder, "train/F-16/0001.jpg"
    label   class label; the names of the classes are sorted

Splits: train, val, test. Examples are sorted by id. To use the builder alone:

    config = ImageFolderConfig(name="mine", folder=DIR, seed=0, val_share=0.15, test_share=0.15)
    builder = ImageFolder(config=config, data_dir=..., file_format="array_record")
    builder.download_and_prepare()
    source = builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow_datasets as tfds

from jsae.data import decode
from jsae.data.image_folder import files


@dataclasses.dataclass
class ImageFolderConfig(tfds.core.BuilderConfig):
    """The folder, and how splits that it does not have are drawn.

    The prepared data are kept under the config's `name`, so two folders need two names.
    """

    folder: str = ""
    seed: int = 0
    val_share: float = 0.15
    test_share: float = 0.15


class ImageFolder(tfds.core.GeneratorBasedBuilder):
    """Images in class folders."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Encoded images, one label."}  # noqa: RUF012 (TFDS interface)

    @functools.cached_property
    def _listing(self) -> files.Listing:
        config = self.builder_config
        if config is None or not config.folder:
            raise ValueError("ImageFolder needs config=ImageFolderConfig(name=..., folder=DIR)")
        return files.read_folder(
            config.folder, seed=config.seed, val_share=config.val_share, test_share=config.test_share
        )

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Images in one folder per class.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                    "id": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=list(self._listing.class_names)),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,  # ids are sorted; order is a matter of jsae.data.order
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # nothing is downloaded
        photos = self._listing.photos
        return {split: self._generate_examples(photos[split]) for split in photos}

    def _generate_examples(self, photos: Iterable[files.Photo]) -> Iterator[tuple[str, dict]]:
        for photo in photos:
            yield photo.id, {"image": decode.file_bytes(photo.path), "id": photo.id, "label": photo.label}
