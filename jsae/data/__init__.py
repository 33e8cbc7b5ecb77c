"""Images in: TFDS builders, decoding, the decoded cache, batch order, grain pipelines, augmentation.

The flow of a data set, each arrow one file:

    photos or drawings -> TFDS builder (ArrayRecord, encoded bytes as they came)
                       -> decode.py (RGB, banner cut, square) -> cache.py (uint8 memory map, once)
                       -> order.py (which image when) -> pipeline.py (grain batches) -> augment.py (on device)

What `config.data.kind` may be, one file each with a `Source` (source.py) and one line in kinds.py:

    synthetic_aircraft   drawn here, with masks of the parts
    fgvc_aircraft        a folder or archive in FGVC-Aircraft layout, with label levels and perhaps boxes
    image_folder         a folder of class folders (image_folder/files.py); splits drawn where there are none
    arrays               images from .npy or .npz (arrays.py), which skip the builder; bare activations
                         skip all of this and go straight into the activation store

Damaged images and links that lead nowhere are treated alike in all of them: `on_bad_image` stops at the first
or leaves them out; then they are counted, listed in the cache's manifest and in that of the activations, and
named at a run's end.
"""

from jsae import lazy_modules

__getattr__, __dir__ = lazy_modules(__name__, __path__)
