"""Pictures: data sets by name, robust reading of single files, and augmented batches made on the training device."""

from s2tdpt.data.augment import Augment
from s2tdpt.data.catalog import data_root, load
from s2tdpt.data.image import normalise, read_image
from s2tdpt.data.loader import DeviceLoader
from s2tdpt.data.randaugment import RandAugment
from s2tdpt.data.sets import ImageSet, PictureFiles

__all__ = [
    "Augment",
    "DeviceLoader",
    "ImageSet",
    "PictureFiles",
    "RandAugment",
    "data_root",
    "load",
    "normalise",
    "read_image",
]
