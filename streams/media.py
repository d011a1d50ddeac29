"""Opens pictures that nobody has vouched for, and says why where a media file cannot be used.

Knows files and arrays; knows no sample format and no model. Everything that can go wrong with a
media file becomes a MediaError that says which file and why. What is not a picture is opened in
`streams/video.py`, `streams/audio.py` and `streams/points.py`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps

from streams.sample import Image

MOST_PIXELS = 50_000_000
"""More than any photograph that a model would see; a bomb declares thousands of times as many."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Plain pixel formats. Pillow would also start an interpreter for PostScript."""


class MediaError(ValueError):
    """A media item that cannot be used; the message names the file and the reason."""


def inside(folder: Path, name: str) -> Path:
    """The path of `name` in `folder`, links followed; refuses one that leaves the folder.

    Raises MediaError for absolute paths, `..`, links that lead out, and addresses.
    """
    if "://" in name or name.startswith("data:"):
        raise MediaError(f"{_short(name)}: is an address; download it and give its path")
    if not name or "\0" in name:
        raise MediaError(f"{_short(name)!r}: is not a path")
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise MediaError(f"{_short(name)}: leaves its folder; give a path relative to {folder}")
    try:
        real = (folder / path).resolve()
    except (OSError, RuntimeError) as error:
        raise MediaError(f"{_short(name)}: {error}") from None
    if not real.is_relative_to(folder.resolve()):
        raise MediaError(f"{_short(name)}: is a link that leaves its folder {folder}")
    return real


def open_image(image: Image | Path | np.ndarray) -> np.ndarray:
    """The pixels of an image: uint8 [height, width, 3], upright, transparency over white.

    Raises MediaError for a file that is missing, unreadable, too large or of more than 8 bits.
    """
    source = image.source if isinstance(image, Image) else image
    if isinstance(source, np.ndarray):
        return Image(source=source).source  # type: ignore[return-value]  # checks the array
    try:
        with opened(source) as picture:
            return upright(picture, source)
    except MediaError:
        raise
    except Exception as error:  # Pillow's decoders raise almost anything on a broken file
        raise MediaError(f"{source}: {reason(error)}") from None


def upright(picture: Pillow.Image, path: Path) -> np.ndarray:
    """The pixels of a picture that is open: uint8 [height, width, 3]."""
    if picture.mode.startswith(("I", "F")):
        why = f"mode {picture.mode}: more than 8 bits a channel; save it as 8-bit RGB"
        raise MediaError(f"{path}: {why}")
    turned = ImageOps.exif_transpose(picture)
    if turned.has_transparency_data:
        layer = turned.convert("RGBA")
        turned = Pillow.alpha_composite(Pillow.new("RGBA", layer.size, "white"), layer)
    return np.array(turned.convert("RGB"))


def check_image(path: Path) -> None:
    """Raises MediaError exactly when `open_image` would; JPEG is decoded at an eighth, fast."""
    try:
        with opened(path) as picture:
            if picture.format == "JPEG":
                picture.draft("RGB", (picture.width // 8 or 1, picture.height // 8 or 1))
                picture.load()
                return
    except MediaError:
        raise
    except Exception as error:
        raise MediaError(f"{path}: {reason(error)}") from None
    open_image(path)


def opened(path: Path) -> Pillow.Image:
    """Reads the header alone. The size is checked here, before any pixel is decoded."""
    picture = Pillow.open(path, formats=FORMATS)
    if picture.width * picture.height > MOST_PIXELS:
        size = f"{picture.width} × {picture.height} pixels"
        picture.close()
        raise MediaError(f"{path}: {size}, more than the {MOST_PIXELS:,} allowed")
    return picture


def mapped(path: Path) -> np.ndarray:
    """The array of a .npy file, of which nothing is read yet but its shape and type.

    Never an object array: those are pickles. Raises ValueError or OSError for another file.
    """
    return np.lib.format.open_memmap(path, mode="r")


def reason(error: Exception) -> str:
    """Why a file cannot be used, in words."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, IsADirectoryError):
        return "is a folder, not a file"
    if isinstance(error, PermissionError):
        return "may not be read (permission denied)"
    if isinstance(error, Pillow.UnidentifiedImageError):
        return f"is not an image in a known format ({', '.join(FORMATS)})"
    if isinstance(error, (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning)):
        return f"more than the {MOST_PIXELS:,} pixels allowed"
    return f"cannot be read: {error}"


def _short(name: str) -> str:
    return name if len(name) <= 120 else f"{name[:117]}…"
