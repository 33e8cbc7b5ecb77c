"""Images in: TFDS builders, decoding, the decoded cache, batch order, grain pipelines, augmentation.

The flow of a data set, each arrow one file:

    photos or drawings -> TFDS builder (ArrayRecord, encoded bytes as they came)
                       -> decode.py (RGB, banner cut, square) -> cache.py (uint8 memory map, once)
                       -> order.py (which image when) -> pipeline.py (grain batches) -> augment.py (on device)
"""
