"""Where the batches of a training run come from: all vectors on the devices, or streamed through a buffer.

blocks     the order of the vectors, 64 fixed blocks, and the batch of a step
resident   all vectors on the devices
streamed   a window of every block at a time
sources    which of the two a run takes
mixing     how well a source mixes images and classes
"""
