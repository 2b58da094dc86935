"""Opening pictures: raster formats only, whatever a file is called, and none that is too large to decode."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
from PIL import EpsImagePlugin, Image
from sightline.common.errors import SightlineError
from sightline.common.pictures import FORMATS, PIXELS, open_image, opened

EPS = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("kind", FORMATS)
def test_raster_formats_are_read(kind: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 6), "red").save(tmp_path / "picture.dat", kind)
    assert open_image(tmp_path / "picture.dat").size == (8, 6)


def test_postscript_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: started.append(1))
    path = tmp_path / "picture.png"
    path.write_text(EPS)
    with Image.open(path) as raw:  # that is what Pillow takes it for
        assert raw.format == "EPS"
    with pytest.raises(SightlineError, match=r"picture.png as an image: give a PNG"):
        open_image(path)
    assert started == []


def large(path: Path, width: int, height: int) -> Path:
    """A PNG that says it is so large, in a hundred bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(b"\0" * 100)), chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


@pytest.mark.parametrize("side", [10_001, 13_000, 60_000])
def test_a_picture_that_is_too_large_is_not_decoded(
    side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    path = large(tmp_path / "large.png", side, side)
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    assert side * side > PIXELS
    with pytest.raises(SightlineError, match=r"large.png as an image"):
        open_image(path)
    assert list(recwarn) == []


@pytest.mark.parametrize("cut", [20, 60, 100])
def test_damage_is_typed(cut: int, tmp_path: Path) -> None:
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"):
        path = tmp_path / f"{kind}.png"
        Image.effect_noise((32, 32), 50).convert("RGB").save(path, kind)
        path.write_bytes(path.read_bytes()[:cut])
        with pytest.raises(SightlineError, match="as an image"):
            open_image(path)


@pytest.mark.parametrize("name", ["nothing.png", "a\0.png", "x" * 300, "/dev/zero", "."])
def test_names_that_no_picture_has(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SightlineError, match="image"), opened(Path(name)):
        pass
