"""Opening image files of any kind as 8-bit grey or colour."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

IMAGE_KINDS = (".jpg", ".jpeg", ".jfif", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Endings of the files in class folders that are taken for images."""
ORIENTATION = ExifTags.Base.Orientation
# What Pillow's decoders let through on damaged files, beside OSError.
_DAMAGE = (SyntaxError, ValueError, TypeError, EOFError, IndexError, struct.error, zlib.error)


def open_image(path: str | Path, upright: bool = False) -> Image.Image:
    """The file's first image in mode ``L`` (grey) or ``RGB``; ``upright`` turns it as its EXIF orientation says.

    16-bit grey is scaled from [0, 65,535] to [0, 255]; 32-bit integers and floats have no range of their own and are
    stretched from their least to their greatest value. Palettes and CMYK become RGB. An alpha channel is left out.

    Raises:
        OSError: the file is missing or is no whole image; the message names it.
    """
    try:
        with Image.open(path) as image:
            image.load()
            shown = _eight_bits(image)
            if upright and (orientation := _orientation(image)) != 1:
                shown.getexif()[ORIENTATION] = orientation
                shown = ImageOps.exif_transpose(shown)
            return shown
    except FileNotFoundError:
        raise
    except (OSError, *_DAMAGE, Image.DecompressionBombError) as error:
        raise OSError(f"{path} is no whole image: {error}") from error


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except (OSError, *_DAMAGE):  # pixels may be whole where what stands beside them is not
        return 1
    return found if isinstance(found, int) else 1


def _eight_bits(image: Image.Image) -> Image.Image:
    mode = image.mode
    # Older versions of Pillow hold 16 bits in its mode of 32-bit integers.
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
    # Straight from palette to RGB, Pillow warns where the palette has transparent entries.
    return (image.convert("RGBA") if mode in ("P", "PA") else image).convert("RGB")
