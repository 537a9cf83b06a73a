"""Decoding of picture files, with one list of formats and one set of limits for all of the package."""

from walloc_data.pictures.decode import PictureError, decode_picture
from walloc_data.pictures.decoded import decoded_pixels
from walloc_data.pictures.formats import FORMATS, MAX_FILE_BYTES, PICTURE_SUFFIXES
from walloc_data.pictures.kept import kept_picture
from walloc_data.pictures.originals import original_pictures
from walloc_data.pictures.resizing import crop_box, encoded_size, resize_and_crop

__all__ = [
    "FORMATS",
    "MAX_FILE_BYTES",
    "PICTURE_SUFFIXES",
    "PictureError",
    "crop_box",
    "decode_picture",
    "decoded_pixels",
    "encoded_size",
    "kept_picture",
    "original_pictures",
    "resize_and_crop",
]
