"""Supported picture formats and limits, for sources, training, serving and reports.

The limit of pixels is `EncodeSettings.max_pixels`.
"""

__all__ = ["FORMATS", "MAX_FILE_BYTES", "PICTURE_SUFFIXES"]

# Pillow's names. Formats that run an interpreter (EPS, PDF) or refer to other files are excluded. MPO opens as JPEG.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF")
# Suffixes of picture files, in lower case. The format is determined by the contents.
PICTURE_SUFFIXES = frozenset(
    (".avif", ".bmp", ".gif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
)
# Larger files are not read into memory: an uncompressed RGB picture of the default `max_pixels` has 2^28 bytes.
MAX_FILE_BYTES = 2**30
