"""ELAN's annotation files (`.eaf`): one tier of one of them as labelled segments.

Belongs here: the XML form. What must hold of any segment (`segments`) does not.

Read of the form (EAF 2.7 to 3.0): `HEADER/MEDIA_DESCRIPTOR` names the media, of which the first video counts;
`TIME_ORDER/TIME_SLOT` holds times in milliseconds; a `TIER` holds `ALIGNABLE_ANNOTATION`s between two slots. A time in
the video is the slot's time plus the media's `TIME_ORIGIN`, the offset that ELAN's synchronisation mode gives it. The
tier's `PARTICIPANT` is the user.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn
from urllib.parse import unquote
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from pipelines.common.errors import DataError
from pipelines.openpack.segments import VIDEO_SUFFIXES, Flaw, LabelledSegment, labelled

_SAVE = "Open it in ELAN and save it again, or take it out of the folder."


def read_eaf(file: Path, root: Path, tier: str | None) -> list[LabelledSegment | Flaw]:
    """The annotations of one tier: the one called `tier`, or the only one that has any.

    Videos are named as seen from `root`. Nothing is raised: a file that cannot be used is a flaw of the video that it
    links, or of the one of its own name where it cannot be read at all.
    """
    beside = tuple(str(file.with_suffix(suffix).relative_to(root)) for suffix in VIDEO_SUFFIXES)
    try:
        document = _parse(file)
        names, origin_ms = _video(document, file, root)
    except DataError as error:
        return [Flaw(beside, None, error)]
    try:
        chosen = _tier(document, file, tier)
    except DataError as error:
        return [Flaw(names, None, error)]
    return [] if chosen is None else _segments(document, chosen, names, origin_ms, file)


def _segments(
    document: Element, tier: Element, names: tuple[str, ...], origin_ms: int, file: Path
) -> list[LabelledSegment | Flaw]:
    slots = {slot.get("TIME_SLOT_ID"): slot.get("TIME_VALUE") for slot in document.iter("TIME_SLOT")}
    found = []
    for annotation in tier.iter("ALIGNABLE_ANNOTATION"):
        row = f"annotation {annotation.get('ANNOTATION_ID')} of tier {tier.get('TIER_ID')}"
        texts = (slots.get(annotation.get(f"TIME_SLOT_REF{side}")) for side in (1, 2))
        # a slot without a time lies somewhere between its neighbours; the text of any other is whole milliseconds
        times = [(int(text) + origin_ms) / 1000 if text and text.isdecimal() else text for text in texts]
        label = annotation.findtext("ANNOTATION_VALUE") or ""
        found.append(labelled(names, times[0], times[1], label, tier.get("PARTICIPANT"), file, row))
    return found


def _video(document: Element, file: Path, root: Path) -> tuple[tuple[str, ...], int]:
    """Names of the first video that is linked, and its offset in milliseconds."""
    for media in document.iterfind("HEADER/MEDIA_DESCRIPTOR"):
        links = [media.get("RELATIVE_MEDIA_URL"), media.get("MEDIA_URL")]
        places = [place for link in links if link for place in (link, unquote(link))]
        videos = [place.replace("\\", "/") for place in places if place.lower().endswith(VIDEO_SUFFIXES)]
        if videos:
            origin = media.get("TIME_ORIGIN") or "0"
            if not origin.removeprefix("-").isdecimal():
                raise DataError(f"the media's TIME_ORIGIN {origin!r} is not a number", file=file, cure=_SAVE)
            below = os.path.relpath(file.parent / videos[0], root)  # an absolute link leads nowhere; its last part may
            return (below, *(video.rpartition("/")[2] for video in videos)), int(origin)
    what = f"it links no video ({', '.join(VIDEO_SUFFIXES)})"
    raise DataError(what, file=file, cure="In ELAN: Edit, Linked Files, Add; then save.")


def _tier(document: Element, file: Path, name: str | None) -> Element | None:
    """The tier to read; None where there is nothing in it."""
    tiers = {str(tier.get("TIER_ID")): tier for tier in document.iterfind("TIER")}
    filled = [tier for tier in tiers.values() if tier.find("ANNOTATION/ALIGNABLE_ANNOTATION") is not None]
    listed = ", ".join(f"{tier.get('TIER_ID')!r}" for tier in filled) or "none"
    if name is None:
        if len(filled) > 1:
            what = f"several tiers have annotations: {listed}"
            raise DataError(what, file=file, cure="Set [recordings] tier to one of them.")
        return filled[0] if filled else None
    if name not in tiers:
        raise DataError(f"it has no tier {name!r}", file=file, cure=f"Tiers with annotations: {listed}.")
    if tiers[name] not in filled and tiers[name].find("ANNOTATION") is not None:
        what = f"the tier {name!r} has no times of its own"
        raise DataError(what, file=file, cure=f"Set [recordings] tier to one of {listed}.")
    return tiers[name]


def _parse(file: Path) -> Element:
    """The document. A DTD is refused: ELAN writes none, and only a DTD can make a small file grow or name another."""
    builder, parser = TreeBuilder(), expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = builder.data, _refuse_dtd
    try:
        with file.open("rb") as stream:
            parser.ParseFile(stream)
    except (OSError, ValueError, expat.ExpatError) as error:
        raise DataError(f"not a readable ELAN file ({error})", file=file, cure=_SAVE) from None
    document = builder.close()
    units = document.find("HEADER")
    if document.tag != "ANNOTATION_DOCUMENT" or units is None:
        raise DataError("not an ELAN annotation document", file=file, cure=_SAVE)
    if units.get("TIME_UNITS", "milliseconds") != "milliseconds":
        raise DataError(f"its times are in {units.get('TIME_UNITS')}, not milliseconds", file=file, cure=_SAVE)
    return document


def _refuse_dtd(*_: object) -> NoReturn:
    raise ValueError("it has a DTD, which ELAN never writes")
