"""TFDS builder of FGVC-Aircraft: lists and photos -> ArrayRecord, without TensorFlow.

Features of an example:

    image         the bytes of the file, unchanged (decoding is ours, see jsae.data.decode)
    id            "0034309", with its leading zeros
    variant, family, manufacturer   class labels in the order of the class lists
    box           int32 [4] xmin, ymin, xmax, ymax as listed (1-based), where images_box.txt exists

Splits: train, val, test. Examples keep the order of their ids. To use the builder alone:

    builder = FgvcAircraft(data_dir=..., file_format="array_record")   # downloads the official archive
    builder.download_and_prepare()
    source = builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jsae.data import decode
from jsae.data.fgvc_aircraft import lists, locate


@dataclasses.dataclass
class FgvcAircraftConfig(tfds.core.BuilderConfig):
    """A folder with the lists and images/; empty: the official archive is downloaded.

    The prepared data are kept under the config's `name`, so two folders need two names.
    """

    folder: str = ""


class FgvcAircraft(tfds.core.GeneratorBasedBuilder):
    """FGVC-Aircraft 2013b, or a folder in its layout."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Encoded images, three label levels, boxes."}  # noqa: RUF012 (TFDS interface)
    BUILDER_CONFIGS = [  # noqa: RUF012 (TFDS interface)
        FgvcAircraftConfig(name="2013b", description="The official archive, downloaded.")
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        folder = self.builder_config.folder
        read = lists.read_lists(folder) if folder else None
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "id": tfds.features.Text(),
        }
        for level in read.class_names if read else lists.LEVELS:
            # the official names are known only after the download: _split_generators sets them
            names = list(read.class_names[level]) if read else None
            features[level] = tfds.features.ClassLabel(names=names)
        if read is None or read.has_boxes:
            features["box"] = tfds.features.Tensor(shape=(4,), dtype=np.int32)
        return tfds.core.DatasetInfo(
            builder=self,
            description="Photos of aircraft: variants, families, manufacturers.",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "variant"),
            homepage="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
            license="Non-commercial research only.",
            citation=_CITATION,
            disable_shuffling=True,  # ids are sorted; order is a matter of jsae.data.order
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        folder = self.builder_config.folder
        if not folder:
            archive = pathlib.Path(dl_manager.download(locate.URL))
            unpacked = pathlib.Path(self.data_dir).parent / "unpacked"
            folder = str(locate.find_lists(locate.unpack(archive, unpacked, md5=locate.MD5)))
        read = lists.read_lists(folder)
        for level, names in read.class_names.items():
            if self.info.features[level].num_classes is None:
                self.info.features[level].names = list(names)
        return {split: self._generate_examples(photos) for split, photos in read.photos.items()}

    def _generate_examples(self, photos: Iterable[lists.Photo]) -> Iterator[tuple[str, dict]]:
        for photo in photos:
            example: dict[str, Any] = {"image": decode.file_bytes(photo.path), "id": photo.id} | photo.labels
            if photo.box is not None:
                example["box"] = np.array(photo.box, np.int32)
            yield photo.id, example


_CITATION = """\
@techreport{maji13fine-grained,
  title = {Fine-Grained Visual Classification of Aircraft},
  author = {S. Maji and J. Kannala and E. Rahtu and M. Blaschko and A. Vedaldi},
  year = {2013}, archivePrefix = {arXiv}, eprint = {1306.5151}, primaryClass = "cs-cv",
}"""
