"""A folder of class folders: its files, the splits drawn where it has none, and its TFDS builder."""

from jsae.data.image_folder.builder import ImageFolder, ImageFolderConfig

__all__ = ["ImageFolder", "ImageFolderConfig"]
