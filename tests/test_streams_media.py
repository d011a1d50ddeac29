"""Media files that nobody vouched for: refused with the file and the reason, or opened exactly."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from streams import contents, media
from streams.sample import Image

NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def saved(path: Path, mode: str = "RGB", **options: Any) -> Path:
    Pillow.fromarray(NOISE).convert(mode).save(path, **options)
    return path


def bomb(path: Path, side: int) -> Path:
    """A few bytes that declare `side` × `side` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b""))
    return path


def test_a_file_and_its_array_are_the_same_picture(tmp_path: Path) -> None:
    file = Image(source=saved(tmp_path / "a.png"))
    array = Image(source=NOISE)
    assert np.array_equal(media.open_image(file), NOISE)
    assert contents.content_hash(file) == contents.content_hash(array)
    assert len(contents.content_hash(array)) == 64
    turned = Image(source=np.ascontiguousarray(NOISE.reshape(60, 40, 3)))
    assert contents.content_hash(turned) != contents.content_hash(array)


def test_transparency_lies_over_white_and_grey_becomes_rgb(tmp_path: Path) -> None:
    clear = tmp_path / "clear.png"
    Pillow.new("RGBA", (3, 2), (10, 20, 30, 0)).save(clear)
    assert (media.open_image(clear) == 255).all()
    assert media.open_image(saved(tmp_path / "grey.png", "L")).shape == (40, 60, 3)
    assert media.open_image(saved(tmp_path / "palette.gif", "P")).shape == (40, 60, 3)


def test_a_photograph_is_turned_upright(tmp_path: Path) -> None:
    orientation = Pillow.Exif()
    orientation[0x0112] = 6
    path = saved(tmp_path / "a.jpg", exif=orientation)
    assert media.open_image(path).shape == (60, 40, 3)


@pytest.mark.parametrize("side", [8_000, 12_000, 60_000])
def test_bombs_are_refused_before_a_pixel_is_decoded(tmp_path: Path, side: int) -> None:
    path = bomb(tmp_path / "bomb.png", side)
    for use in (media.open_image, media.check_image):
        with pytest.raises(media.MediaError, match=r"bomb\.png.*50,000,000"):
            use(path)


def test_broken_files_say_which_and_why(tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("not an image")
    whole = saved(tmp_path / "whole.jpg", quality=95).read_bytes()
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(whole[: len(whole) // 2])
    sixteen = tmp_path / "deep.png"
    Pillow.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)).save(sixteen)
    script = tmp_path / "script.eps"
    script.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    cases = {
        text: "not an image in a known format",
        cut: "cannot be read",
        sixteen: "more than 8 bits",
        script: "not an image in a known format",
        tmp_path / "absent.png": "no such file",
        tmp_path: "is a folder",
    }
    for path, reason in cases.items():
        for use in (media.open_image, media.check_image):
            with pytest.raises(media.MediaError, match=reason) as caught:
                use(path)
            assert str(path) in str(caught.value)


def test_paths_stay_in_their_folder(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    outside = saved(tmp_path / "secret.png")
    inner = saved(folder / "sub" / "a.png")
    (folder / "out.png").symlink_to(outside)
    (folder / "up").symlink_to(tmp_path)
    (folder / "alias.png").symlink_to(inner)
    (folder / "loop").symlink_to(folder / "loop")
    assert media.inside(folder, "sub/a.png") == inner.resolve()
    assert media.inside(folder, "alias.png") == inner.resolve()
    hostile = ("../secret.png", "sub/../../secret.png", str(outside), "out.png", "up/secret.png")
    for name in hostile:
        with pytest.raises(media.MediaError, match="leaves its folder"):
            media.inside(folder, name)
    for name in ("", "a\0.png"):
        with pytest.raises(media.MediaError, match="not a path"):
            media.inside(folder, name)
    for name in ("https://example.org/a.png", "data:image/png;base64,AAAA"):
        with pytest.raises(media.MediaError, match="address"):
            media.inside(folder, name)


def test_thumbnails_are_small_exact_and_never_enlarged() -> None:
    large = Image(source=np.zeros((600, 300, 3), dtype=np.uint8))
    with Pillow.open(io.BytesIO(contents.thumbnail(large))) as picture:
        assert picture.format == "PNG"
        assert picture.size == (112, 224)
    with Pillow.open(io.BytesIO(contents.thumbnail(Image(source=NOISE)))) as picture:
        assert np.array_equal(np.asarray(picture), NOISE)
    assert contents.thumbnail(large) == contents.thumbnail(large)
