"""Whether a film's file is whole, by the lengths that its container states: mp4 and mov, mkv and webm, avi.

Belongs here: what the outermost parts of a file say of their own length. What is in them is a decoder's business
(`media`). A decoder plays what there is of a film that was cut short, so only these lengths can tell for sure.

They cannot where a file was written in one go, to a place that allows no going back: an mkv whose segment has no
length (also what a recorder leaves that was killed), an mp4 whose last box reaches "to the end" or that was cut
exactly between two fragments. Then a cut inside a frame is still found, since ffmpeg complains while it decodes; a cut
exactly between two frames cannot be told from a shorter film.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipelines.common.errors import DataError

_AGAIN = "Copy it from where it was recorded again."
_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")  # with which an mp4 or mov starts
_EBML = b"\x1a\x45\xdf\xa3"
_HEADER = 16  # bytes: no part's name and length are longer

Lengths = Callable[[bytes], int | None]


def check_film(path: Path) -> None:
    """Walks the outermost parts of a film's file. DataError for one that is empty, cut short, damaged or no film.

    The container is told by its first bytes, whatever the name.
    """
    size = path.stat().st_size
    if size == 0:
        raise DataError("the film is empty", file=path, cure=_AGAIN)
    end = 0
    with path.open("rb") as stream:
        length_of = _lengths(stream.read(_HEADER), path)
        while end < size:
            stream.seek(end)
            length = length_of(stream.read(_HEADER))
            if length == 0:
                raise DataError("the film is damaged", file=path, where=f"byte {end}", cure=_AGAIN)
            end = size if length is None else end + length
    if end > size:
        raise DataError(f"the film is cut short: {size} of at least {end} bytes", file=path, cure=_AGAIN)


def _lengths(start: bytes, path: Path) -> Lengths:
    """How this container tells the length of a part: bytes with its header, None to the end of the file, 0 for no
    part at all."""
    if start[4:8] in _BOXES:
        return _box_length
    if start[:4] == _EBML:
        return _element_length
    if start[:4] == b"RIFF" and start[8:12] == b"AVI ":
        return _chunk_length
    cure = f"Give an mp4, mov, mkv, webm or avi. {_AGAIN}"
    raise DataError(f"not an {path.suffix[1:].lower()} film", file=path, cure=cure)


def _box_length(header: bytes) -> int | None:
    """Of mp4 and mov: length in 32 bits, name, length in 64 bits where the first says 1; 0 is to the end."""
    length = int.from_bytes(header[:4], "big")
    if length == 1:
        length = int.from_bytes(header[8:], "big")
    if not header[4:8].isalnum() or 0 < length < 8:
        return 0
    return length or None


def _element_length(header: bytes) -> int | None:
    """Of mkv: name and length as numbers whose first byte's leading zeros say how many bytes follow."""
    name = 9 - header[0].bit_length()
    if name > 4 or len(header) <= name:
        return 0
    size = 9 - header[name].bit_length()
    if size > 8 or len(header) < name + size:
        return 0
    value = int.from_bytes(header[name : name + size], "big") - (1 << 7 * size)
    return None if value == (1 << 7 * size) - 1 else name + size + value


def _chunk_length(header: bytes) -> int:
    """Of avi: name, length in 32 bits; content is padded to an even length."""
    length = int.from_bytes(header[4:8], "little")
    return 8 + length + length % 2 if header[:4].isalnum() and len(header) >= 8 else 0
