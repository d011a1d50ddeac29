"""Opens media that nobody has vouched for: as pixels, as a hash, as a thumbnail.

Knows files and arrays; knows no sample format and no model. Everything that can go wrong with a
media file becomes a MediaError that says which file and why.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps

from streams.sample import Image

MOST_PIXELS = 50_000_000
"""More than any photograph that a model would see; a bomb declares thousands of times as many."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Plain pixel formats. Pillow would also start an interpreter for PostScript."""
THUMBNAIL_SIDE = 224


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
        with _opened(source) as picture:
            if picture.mode.startswith(("I", "F")):
                reason = f"mode {picture.mode}: more than 8 bits a channel; save it as 8-bit RGB"
                raise MediaError(f"{source}: {reason}")
            upright = ImageOps.exif_transpose(picture)
            if upright.has_transparency_data:
                layer = upright.convert("RGBA")
                upright = Pillow.alpha_composite(Pillow.new("RGBA", layer.size, "white"), layer)
            return np.array(upright.convert("RGB"))
    except MediaError:
        raise
    except Exception as error:  # Pillow's decoders raise almost anything on a broken file
        raise MediaError(f"{source}: {_reason(error)}") from None


def check_image(path: Path) -> None:
    """Raises MediaError exactly when `open_image` would; JPEG is decoded at an eighth, fast."""
    try:
        with _opened(path) as picture:
            if picture.format == "JPEG":
                picture.draft("RGB", (picture.width // 8 or 1, picture.height // 8 or 1))
                picture.load()
                return
    except MediaError:
        raise
    except Exception as error:
        raise MediaError(f"{path}: {_reason(error)}") from None
    open_image(path)


def content_hash(image: Image) -> str:
    """SHA-256 of the pixels and their shape: the same for a file, its copy and its array."""
    pixels = open_image(image)
    digest = hashlib.sha256(f"{pixels.shape[0]}x{pixels.shape[1]}:".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def thumbnail(image: Image, side: int = THUMBNAIL_SIDE) -> bytes:
    """A PNG no larger than `side` pixels either way; small pictures keep their size."""
    picture = Pillow.fromarray(open_image(image))
    picture.thumbnail((side, side), Pillow.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _opened(path: Path) -> Pillow.Image:
    """Reads the header alone. The size is checked here, before any pixel is decoded."""
    picture = Pillow.open(path, formats=FORMATS)
    if picture.width * picture.height > MOST_PIXELS:
        size = f"{picture.width} × {picture.height} pixels"
        picture.close()
        raise MediaError(f"{path}: {size}, more than the {MOST_PIXELS:,} allowed")
    return picture


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, IsADirectoryError):
        return "is a folder, not an image"
    if isinstance(error, PermissionError):
        return "may not be read (permission denied)"
    if isinstance(error, Pillow.UnidentifiedImageError):
        return f"is not an image in a known format ({', '.join(FORMATS)})"
    if isinstance(error, (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning)):
        return f"more than the {MOST_PIXELS:,} pixels allowed"
    return f"cannot be read: {error}"


def _short(name: str) -> str:
    return name if len(name) <= 120 else f"{name[:117]}…"
