"""The formats that are read, and the limits: one table for sources, training, serving and reports.

How many pixels a picture may have is `EncodeSettings.max_pixels`.
"""

__all__ = ["FORMATS", "MAX_FILE_BYTES", "PICTURE_SUFFIXES"]

# Pillow's names. Never the formats that run an interpreter (EPS, PDF), nor those that are lists of other files. MPO
# opens as JPEG.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF")
# How names of picture files end, in lower case. What a file is, its first bytes decide.
PICTURE_SUFFIXES = frozenset(
    (".avif", ".bmp", ".gif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
)
# Larger files are not read into memory: an uncompressed RGB picture of the default `max_pixels` has 2^28 bytes.
MAX_FILE_BYTES = 2**30
