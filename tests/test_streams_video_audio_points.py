"""Video, audio and 3D that nobody vouched for: opened exactly, or refused with file and reason."""

from __future__ import annotations

import dataclasses
import io
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from streams import audio, contents, points, video
from streams.media import MediaError
from streams.sample import Audio, Image, Medium, Message, Points, Provenance, Sample, Text, Video

RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 256, (5, 12, 20, 3), dtype=np.uint8)
CLOUD = RNG.normal(size=(7, 3)).astype(np.float32)
TONE = np.sin(np.arange(4000) * 1.3).astype(np.float32)


def animated(path: Path, frames: np.ndarray = FRAMES, **options: Any) -> Path:
    first, *others = [Pillow.fromarray(frame) for frame in frames]
    first.save(path, save_all=True, append_images=others, **options)
    return path


def numbered(folder: Path, names: list[str]) -> Path:
    folder.mkdir()
    for name, frame in zip(names, FRAMES, strict=False):
        Pillow.fromarray(frame).save(folder / name)
    return folder


def npy(path: Path, array: Any, **options: Any) -> Path:
    np.save(path, array, **options)
    return path


def wav(path: Path, data: bytes, *, width: int = 2, channels: int = 1, rate: int = 8000) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(data)
    return path


def refused(medium: Medium) -> str:
    """Why; opening and checking must agree."""
    opened = {Video: video.open_video, Audio: audio.open_audio, Points: points.open_points}
    with pytest.raises(MediaError) as first:
        opened[type(medium)](medium)  # type: ignore[index, operator]
    with pytest.raises(MediaError) as second:
        contents.check(medium)
    assert str(first.value) == str(second.value)
    return str(first.value)


# Video


def test_an_animation_a_folder_and_an_array_are_the_same_video(tmp_path: Path) -> None:
    names = ["frame-10.png", "frame-2.png", "x-030.png", "31.png", "100.png"]
    order = [1, 0, 2, 3, 4]  # by number, not by name
    folder = numbered(tmp_path / "frames", names)
    (folder / ".DS_Store").write_text("left by a Mac")
    sources = [
        animated(tmp_path / "a.png"),
        animated(tmp_path / "a.webp", lossless=True, quality=100, method=0),
        npy(tmp_path / "a.npy", FRAMES),
        FRAMES,
    ]
    hashes = set()
    for source in sources:
        assert np.array_equal(video.open_video(Video(source=source)), FRAMES), source
        contents.check(Video(source=source))
        hashes.add(contents.content_hash(Video(source=source)))
    assert len(hashes) == 1
    assert np.array_equal(video.open_video(Video(source=folder)), FRAMES[order])


def test_a_gif_shows_what_each_frame_leaves_of_the_last(tmp_path: Path) -> None:
    """A second frame that is drawn in part alone, the rest transparent."""
    base = np.zeros((10, 10, 3), np.uint8)
    base[..., 0] = 255
    later = base.copy()
    later[2:4, 2:4] = (0, 0, 255)
    found = video.open_video(animated(tmp_path / "a.gif", np.stack([base, later])))
    assert np.array_equal(found, np.stack([base, later]))


def test_an_animation_for_those_who_know_none_is_no_frame(tmp_path: Path) -> None:
    path = animated(tmp_path / "a.png", default_image=True)
    assert np.array_equal(video.open_video(path), FRAMES[1:])


def test_what_is_no_video_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    still = tmp_path / "still.png"
    Pillow.fromarray(FRAMES[0]).save(still)
    text = tmp_path / "text.gif"
    text.write_text("no pictures")
    whole = animated(tmp_path / "whole.gif").read_bytes()
    cut = tmp_path / "cut.gif"
    cut.write_bytes(whole[: len(whole) // 2])
    mixed = numbered(tmp_path / "mixed", ["1.png", "2.png"])
    Pillow.new("RGB", (5, 5)).save(mixed / "3.png")
    stray = numbered(tmp_path / "stray", ["1.png"])
    (stray / "notes.txt").write_text("")
    outside = numbered(tmp_path / "outside", ["1.png"])
    (outside / "2.png").symlink_to(tmp_path / "still.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "film.ogv").write_bytes(b"OggS")
    pickled = npy(tmp_path / "pickle.npy", np.array([{}]), allow_pickle=True)
    cases: dict[Path, str] = {
        still: "is a still picture; name it as image",
        text: "not an image in a known format",
        cut: "cannot be read",
        mixed: "frames of 20 × 12 and 5 × 5 pixels",
        stray: "notes.txt: has no number",
        outside: "is a link that leaves its folder",
        numbered(tmp_path / "twice", ["1.png", "a01.png"]): "has the number of 1.png",
        tmp_path / "empty": "holds no frame",
        tmp_path / "absent.gif": "no such file",
        tmp_path / "absent.npy": "no such file",
        tmp_path / "film.ogv": "no video in a known form; give an animated GIF",
        npy(tmp_path / "f.npy", FRAMES.astype(np.float32)): "of uint8, not [5, 12, 20, 3] of float",
        npy(tmp_path / "3.npy", FRAMES[0]): "not [12, 20, 3]",
        npy(tmp_path / "0.npy", FRAMES[:0]): "holds no frame",
        pickled: "pickle.npy",
    }
    for path, reason in cases.items():
        message = refused(Video(source=path))
        assert reason in message
        assert str(path) in message
    monkeypatch.setattr(video, "MOST_PIXELS", 5 * 12 * 20 - 1)
    for path in (animated(tmp_path / "a.png"), npy(tmp_path / "a.npy", FRAMES)):
        assert "1,200 pixels in its frames, more than the 1,199" in refused(Video(source=path))
    large = numbered(tmp_path / "large", [f"{i}.png" for i in range(5)])
    assert "1,200 pixels" in refused(Video(source=large))


def test_an_array_that_declares_more_than_the_file_holds_is_not_allocated(tmp_path: Path) -> None:
    path = npy(tmp_path / "a.npy", FRAMES)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"(5, 12, 20, 3), }", b"(9, 99999, 20, 3), }", 1))
    assert "a.npy" in refused(Video(source=path))


def test_a_film_without_the_reader_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"\0" * 99)
    monkeypatch.setitem(sys.modules, "av", None)
    message = refused(Video(source=path))
    assert "PyAV, which is not installed: pip install av; or give an animated GIF" in message


def test_a_film_is_read_frame_by_frame(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for shade in (0, 100, 200):
            picture = np.full((48, 64, 3), shade, np.uint8)
            picture[:24, :32] = 255
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    found = video.open_video(path)
    assert found.shape == (3, 48, 64, 3)
    assert np.abs(found[:, 30:, 40:].mean(axis=(1, 2, 3)) - (0, 100, 200)).max() < 4
    assert (found[:, :20, :28] > 230).all()
    upright = path.read_bytes()
    # The matrix of a track that is turned by 90° to the right, as telephones write it.
    plain = b"".join(n.to_bytes(4, "big") for n in (65536, 0, 0, 0, 65536, 0, 0, 0, 2**30))
    turned = b"".join(n.to_bytes(4, "big") for n in (0, 65536, 0, 2**32 - 65536, 0, 0, 0, 0, 2**30))
    at = upright.index(plain, upright.index(b"tkhd"))
    path.write_bytes(upright[:at] + turned + upright[at + len(plain) :])
    found = video.open_video(path)
    assert found.shape == (3, 64, 48, 3)
    assert (found[:, :28, 28:] > 230).all()  # what was at the upper left is at the upper right
    path.write_bytes(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n")  # a list of other files
    assert "a.mp4" in refused(Video(source=path))


# Audio


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_pcm_of_every_width_is_read_exactly(tmp_path: Path, width: int) -> None:
    highest = 2 ** (8 * width - 1)
    levels = [0, highest - 1, -highest, highest // 2, -highest // 4, 1]
    data = b"".join(
        (level + 128).to_bytes(1, "little")
        if width == 1
        else level.to_bytes(width, "little", signed=True)
        for level in levels
    )
    found, rate = audio.open_audio(wav(tmp_path / "a.wav", data, width=width))
    assert (found.dtype, rate) == (np.float32, 8000)
    assert np.allclose(found, np.array(levels) / highest, rtol=0, atol=2**-25)
    assert np.abs(found).max() <= 1


def test_channels_are_averaged(tmp_path: Path) -> None:
    data = np.array([[0, 16384], [-32768, 0], [8192, 8192]], "<i2").tobytes()
    path = wav(tmp_path / "a.wav", data, channels=2, rate=44_100)
    found, rate = audio.open_audio(Audio(source=path))
    assert (found.tolist(), rate) == ([0.25, -0.5, 0.25], 44_100)
    contents.check(Audio(source=path))
    array = Audio(source=found, sampling_rate=44_100)
    assert contents.content_hash(array) == contents.content_hash(Audio(source=path))
    other = dataclasses.replace(array, sampling_rate=8000)
    assert contents.content_hash(array) != contents.content_hash(other)


def test_what_is_no_plain_wave_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = wav(tmp_path / "whole.wav", b"\0\1" * 50).read_bytes()
    cut = tmp_path / "cut.wav"
    cut.write_bytes(whole[:-20])
    short = tmp_path / "short.wav"
    short.write_bytes(whole[:20])
    floats = tmp_path / "floats.wav"
    floats.write_bytes(whole.replace(b"fmt \x10\0\0\0\1\0", b"fmt \x10\0\0\0\3\0"))
    still = tmp_path / "still.wav"
    still.write_bytes(whole.replace((8000).to_bytes(4, "little"), bytes(4), 1))
    for name in ("a.flac", "a.mp3"):
        (tmp_path / name).write_bytes(b"fLaC" * 20)
    cases = {
        cut: "is cut short, 40 of 50 samples",
        short: "is not a WAV file of plain PCM",
        floats: "is not a WAV file of plain PCM (unknown format: 3); convert it: ffmpeg",
        still: "says 0 Hz",
        wav(tmp_path / "empty.wav", b""): "holds no sound",
        tmp_path / "a.flac": "is not a WAV file of plain PCM",
        tmp_path / "a.mp3": "convert it: ffmpeg -i IN -c:a pcm_s16le OUT.wav",
        tmp_path / "absent.wav": "no such file",
        tmp_path: "is a folder, not a file",
    }
    for path, reason in cases.items():
        message = refused(Audio(source=path))
        assert reason in message
        assert str(path) in message
    for level in (1.5, np.nan, 20_000):
        loud = Audio(source=np.array([0, level], np.float32), sampling_rate=8000)
        assert "must lie in [−1, 1]; its highest level is" in refused(loud)
    monkeypatch.setattr(audio, "MOST_SAMPLES", 99)
    stereo = wav(tmp_path / "long.wav", b"\0\1" * 100, channels=2)
    assert "50 samples of 2 channels, more than the 99 allowed" in refused(Audio(source=stereo))


# 3D


def test_a_cloud_is_read_with_and_without_colours(tmp_path: Path) -> None:
    coloured = np.concatenate([CLOUD, RNG.uniform(size=(7, 3)).astype(np.float32)], axis=1)
    for array in (CLOUD, coloured):
        wide = npy(tmp_path / "a.npy", array.astype(np.float64))
        assert np.array_equal(points.open_points(wide), array)
        assert points.open_points(wide).dtype == np.float32
        a, b = Points(source=wide), Points(source=array)
        assert contents.content_hash(a) == contents.content_hash(b)
    assert contents.in_words(Points(source=coloured)) == "points, 7 with colours"


def test_what_is_no_cloud_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bright = np.concatenate([CLOUD, np.full((7, 3), 255)], axis=1)
    cases = {
        npy(tmp_path / "i.npy", CLOUD.astype(int)): "of float32, not [7, 3] of int64",
        npy(tmp_path / "4.npy", CLOUD[:, [0, 1, 2, 0]]): "not [7, 4]",
        npy(tmp_path / "0.npy", CLOUD[:0]): "holds no point",
        npy(tmp_path / "inf.npy", np.full((2, 3), 1e300)): "not finite",
        npy(tmp_path / "nan.npy", CLOUD * np.nan): "not finite",
        npy(tmp_path / "b.npy", bright): "colours must lie in [0, 1], not 255 to 255; divide bytes",
        npy(tmp_path / "o.npy", np.array([{}]), allow_pickle=True): "o.npy",
        tmp_path / "a.ply": "is no .npy file",
        tmp_path / "absent.npy": "no such file",
    }
    for path, reason in cases.items():
        message = refused(Points(source=path))
        assert reason in message
        assert str(path) in message
    monkeypatch.setattr(points, "MOST_POINTS", 6)
    message = refused(Points(source=npy(tmp_path / "n.npy", CLOUD)))
    assert "7 points, more than the 6 allowed" in message


# Any medium


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Video(source=FRAMES[0]), "video: an array must have shape [frames, height"),
        (lambda: Video(source=FRAMES[:0]), "not [0, 12, 20, 3] and uint8"),
        (lambda: Audio(source=TONE), "audio: a wave needs its sampling_rate in Hz; got None"),
        (lambda: Audio(source=TONE, sampling_rate=0), "got 0"),
        (lambda: Audio(source=TONE[None], sampling_rate=9), "must have shape [samples] and"),
        (lambda: Audio(source=TONE.astype(float), sampling_rate=9), "not [4000] and float64"),
        (lambda: Audio(source=Path("a.wav"), sampling_rate=9), "leave out 9"),
        (lambda: Points(source=CLOUD[:, :2]), "[points, 3] or [points, 6] and dtype float32, not"),
    ],
)
def test_a_misshapen_array_is_refused_at_once(make: Any, reason: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (what it says is checked)
        make()
    assert reason in str(caught.value)


def test_one_file_as_an_image_and_as_a_video_are_two_things(tmp_path: Path) -> None:
    path = animated(tmp_path / "a.png")
    hashes = {contents.content_hash(kind(source=path)) for kind in (Image, Video)}
    assert len(hashes) == 2


def test_thumbnails_show_the_middle_frame_the_wave_and_the_cloud() -> None:
    def png(medium: Medium) -> np.ndarray:
        with Pillow.open(io.BytesIO(contents.thumbnail(medium))) as picture:
            return np.asarray(picture)

    assert np.array_equal(png(Video(source=FRAMES)), FRAMES[2])
    half = TONE.copy()
    half[2000:] *= 0.25
    drawn = png(Audio(source=half, sampling_rate=8000)) < 255
    tall = drawn.sum(axis=0)
    assert drawn.shape == (56, 224)
    assert 40 < tall[:110].mean() <= 56
    assert 8 < tall[114:].mean() < 20
    assert png(Audio(source=TONE[:3], sampling_rate=8000)).shape == (56, 224)
    corners = np.array([[0, 0, 0], [2, 1, 0]], np.float32) + 100
    rows, columns = np.nonzero(png(Points(source=corners)) < 255)
    assert (sorted(rows), sorted(columns)) == ([28, 83], [0, 111])
    assert rows[np.argmin(columns)] > rows[np.argmax(columns)]  # y points up
    assert (png(Points(source=CLOUD[:1])) < 255).sum() == 1
    assert contents.thumbnail(Points(source=CLOUD)) == contents.thumbnail(Points(source=CLOUD))


def test_media_in_words() -> None:
    assert contents.in_words(Video(source=FRAMES)) == "video, 5 frames of 20 × 12 pixels"
    assert contents.in_words(Audio(source=TONE, sampling_rate=8000)) == "audio, 0.50 s at 8,000 Hz"
    assert contents.in_words(Image(source=FRAMES[0])) == "image, 20 × 12 pixels"


def test_what_media_take_where_they_are(tmp_path: Path) -> None:
    assert contents.stored_bytes(Audio(source=TONE, sampling_rate=9)) == TONE.nbytes
    folder = numbered(tmp_path / "frames", ["1.png", "2.png"])
    size = sum(file.stat().st_size for file in folder.iterdir())
    assert contents.stored_bytes(Video(source=folder)) == size


def test_no_repr_of_a_withheld_sample_shows_a_medium() -> None:
    path = Path("moonquartz/lantern.png")
    media: tuple[Medium, ...] = (
        Image(source=path),
        Video(source=FRAMES),
        Audio(source=TONE, sampling_rate=8000),
        Points(source=path),
    )
    sample = Sample(
        id="hidden",
        messages=(Message(role="user", parts=(*media, Text(text="?"))),),
        reference=(Image(source=path),),
        rejected=(Audio(source=path),),
        provenance=Provenance(source="made up", split="test", item="1"),
        withheld=True,
    )
    for shown in (sample, sample.messages, sample.reference, sample.rejected, sample.media):
        assert "moonquartz" not in repr(shown)
        assert "[" not in repr(shown)
    assert repr(sample.media[1]) == "Video(withheld)"
    assert [one.source for one in sample.media] == [one.source for one in media]
    assert repr(media[1]) == "Video(source=uint8 [5, 12, 20, 3])"
    assert repr(media[0]) == f"Image(source={path!r})"
