"""Open image files of many kinds as 8-bit grey or colour images."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from common.files import read_bounded

IMAGE_KINDS = (".jpg", ".jpeg", ".jfif", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""File extensions of images in class folders."""
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's formats that are opened. Others, such as EPS, would start another program."""
MOST_PIXELS = 2**28
"""Maximum number of pixels of an image, by its file or its annotations. An image with more counts as broken."""
MOST_BYTES = 2**30
"""Maximum size of an image's file."""
ORIENTATION = ExifTags.Base.Orientation
# Pillow's decoders raise these errors on damaged files, besides OSError.
_DAMAGE = (SyntaxError, ValueError, TypeError, EOFError, IndexError, struct.error, zlib.error)


def open_image(path: str | Path, upright: bool = False) -> Image.Image:
    """Open a file's first image in mode ``L`` (grey) or ``RGB``.

    16-bit grey is scaled from [0, 65,535] to [0, 255]. 32-bit integers and floats have no fixed range, so the range
    from the least to the greatest value is scaled to [0, 255]. Palettes and CMYK become RGB. An alpha channel is
    dropped.

    Args:
        path: path of the file.
        upright: whether to turn the image by its EXIF orientation.

    Raises:
        OSError: the file is missing or is not a complete image. The message names the file.
    """
    try:
        content = _content(Path(path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # Pillow's own limit is lower
            image = Image.open(content, formats=FORMATS)
        with image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels are out of range")
            image.load()
            shown = _eight_bits(image)
            if upright and (orientation := _orientation(image)) != 1:
                shown.getexif()[ORIENTATION] = orientation
                shown = ImageOps.exif_transpose(shown)
            return shown
    except FileNotFoundError:
        raise
    except UnidentifiedImageError:
        raise OSError(f"{path} is not a complete image: its kind is unknown") from None
    except (OSError, *_DAMAGE, Image.DecompressionBombError) as error:
        raise OSError(f"{path} is not a complete image: {error}") from error


def _content(path: Path) -> io.BytesIO:
    """Return the content of a file. Pillow reads at most what is there, whatever lengths the file declares.

    Raises:
        OSError: the file is missing, or is not a regular file. Opening a pipe would wait forever.
    """
    if path.exists() and not path.is_file():
        raise OSError("it is no regular file")
    return io.BytesIO(read_bounded(path, MOST_BYTES))


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; 1 (upright) if none can be read."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except (OSError, *_DAMAGE):  # the pixels may be intact although the metadata is damaged
        return 1
    return found if isinstance(found, int) else 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """Convert an image to 8-bit grey or colour."""
    mode = image.mode
    # Older versions of Pillow open 16-bit images in the mode of 32-bit integers.
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))
    if mode in ("I", "F"):
        values = np.asarray(image).astype(np.float64)
        if not np.isfinite(values).all():
            raise ValueError("its values are not all finite")
        values -= values.min()
        return Image.fromarray(np.round(values * (255 / max(values.max(), 1e-300))).astype(np.uint8))
    if mode in ("1", "L", "LA", "La"):
        return image.convert("L")
    # Pillow warns when a palette with transparent entries is converted to RGB directly.
    return (image.convert("RGBA") if mode in ("P", "PA") else image).convert("RGB")
