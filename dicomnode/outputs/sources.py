"""Attributes carried over from a source: named ones only, re-encoded, and cleaned of what the standard forbids.

Flow: request > [sources] > modules
Never: a deep copy of a source; private data, save the elements an SUV needs; text in the source's character set.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import pydicom
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.multival import MultiValue
from pydicom.valuerep import format_number_as_ds

from dicomnode.volumes.headers import PARSE_ERRORS

MAX_DEPTH = 8  # sequences within sequences; PET headers use 3
# PS3.5 6.2: the longest value of each textual value representation, in characters.
MAX_CHARACTERS = {"AE": 16, "CS": 16, "LO": 64, "LT": 10240, "PN": 64 * 3 + 2, "SH": 16, "ST": 1024, "UT": 2**20}
DS_CHARACTERS = 16
IS_CHARACTERS = 12
PARAGRAPHS = {"LT", "ST", "UT"}  # may hold line ends; every other text is one line
VALID = {
    "AS": re.compile(r"\d{3}[DWMY]"),
    "DA": re.compile(r"\d{4}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])"),
    "DT": re.compile(r"\d{4}((0[1-9]|1[0-2])((0[1-9]|[12]\d|3[01])(\d{2}){0,3}(\.\d{1,6})?)?)?([+-]\d{4})?"),
    "TM": re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?"),
    "UI": re.compile(r"(?=.{1,64}$)(0|[1-9]\d*)(\.(0|[1-9]\d*))+"),
}
ACR_NEMA_SEPARATORS = {"DA": ".", "TM": ":"}  # PS3.5 6.2: it wrote 1993.08.22 and 10:11:12
PrivateElement = tuple[int, str, int, str]  # group, creator, element within its block, value representation


def copy_present(source: pydicom.Dataset, target: pydicom.Dataset, keywords: Iterable[str]) -> None:
    """Carry over those of the attributes (type 3) that the source holds with a usable value."""
    for keyword in keywords:
        value = read_clean(source, keyword)
        if value is not None:
            setattr(target, keyword, value)


def copy_or_empty(source: pydicom.Dataset, target: pydicom.Dataset, keywords: Iterable[str]) -> None:
    """Carry over attributes of type 2: empty where the source holds nothing usable."""
    for keyword in keywords:
        value = read_clean(source, keyword)
        setattr(target, keyword, value if value is not None else ([] if dictionary_VR(keyword) == "SQ" else None))


def copy_private(source: pydicom.Dataset, target: pydicom.Dataset, element: PrivateElement) -> None:
    """Carry over one private element, in its creator's block, if the source holds it with a usable value."""
    group, creator, offset, vr = element
    value = read_private(source, element)
    if value is not None:
        target.private_block(group, creator, create=True).add_new(offset, vr, value)


def read_private(source: pydicom.Dataset, element: PrivateElement) -> object | None:
    """Read one private element as `read_clean` does, whatever value representation it came with."""
    group, creator, offset, vr = element
    try:
        value = source.private_block(group, creator)[offset].value
        text = value.decode("ascii").strip(" \0") if isinstance(value, bytes) else value  # implicit: VR UN
        return _clean_value(DataElement((group, offset), vr, text), MAX_DEPTH)
    except PARSE_ERRORS:
        return None


def read_clean(source: pydicom.Dataset, keyword: str) -> object | None:
    """Read one attribute as a plain value fit for an ISO_IR 192 data set, or None where there is none.

    Parameters
    ----------
    source : Dataset
        Decoded with its own SpecificCharacterSet.
    keyword : str
        A standard attribute.

    Returns
    -------
    str, int, list or None
        Numbers as strings (DS, IS) keep the source's spelling where it fits. What breaks the rules of its value
        representation is mended where that loses nothing (control characters, length, upper case) or left out.
    """
    try:
        element = source[keyword] if keyword in source else None  # noqa: SIM401 - Dataset.get(keyword) gives the value
        return None if element is None else _clean_value(element, 0)
    except PARSE_ERRORS:
        return None


def read_text(source: pydicom.Dataset, keyword: str) -> str:
    """Read one text on one line, empty where there is none."""
    value = read_clean(source, keyword)
    if isinstance(value, list):
        return " ".join(str(item) for item in value)
    return "" if value is None else str(value)


def _clean_value(element: DataElement, depth: int) -> object | None:
    if element.VR == "SQ":
        return _clean_items(element, depth)
    clean = _CLEANERS.get(element.VR)
    value = element.value
    if clean is None or value is None:
        return None
    several = list(value) if isinstance(value, MultiValue | list | tuple) else [value]
    cleaned = [clean(item, element.VR) for item in several]
    if not cleaned or any(item in {None, ""} for item in cleaned):
        return None
    return cleaned[0] if len(cleaned) == 1 else cleaned


def _clean_items(element: DataElement, depth: int) -> list[pydicom.Dataset] | None:
    """Rebuild a sequence item by item; coded concepts that lack their code are dropped."""
    if depth >= MAX_DEPTH:
        return None
    is_coded = keyword_for_tag(element.tag).endswith("CodeSequence")
    items = []
    for source in element.value:
        item = pydicom.Dataset()
        for nested in source:
            if nested.tag.is_private or nested.tag.element == 0:
                continue
            value = _clean_value(nested, depth + 1)
            if value is not None:
                item.add_new(nested.tag, nested.VR, value)
        if not is_coded or all(keyword in item for keyword in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")):
            items.append(item)
    return items


def _clean_text(value: object, vr: str) -> str | None:
    kept = "\r\n\t" if vr in PARAGRAPHS else ""
    text = "".join(c if c.isprintable() or c in kept else " " for c in str(value))
    return text.strip()[: MAX_CHARACTERS[vr]].rstrip() or None


def _clean_code(value: object, vr: str) -> str | None:
    text = _clean_text(value, vr)
    return re.sub(r"[^A-Z0-9 _]", "_", text.upper()) if text else None


def _clean_pattern(value: object, vr: str) -> str | None:
    text = str(value).strip(" \0")
    if vr in ACR_NEMA_SEPARATORS:
        text = text.replace(ACR_NEMA_SEPARATORS[vr], "")
    return text if VALID[vr].fullmatch(text) else None


def _clean_decimal(value: object, _vr: str) -> str | None:
    text = str(getattr(value, "original_string", value)).strip(" \0")
    return text if len(text) <= DS_CHARACTERS else str(format_number_as_ds(float(text)))


def _clean_integer(value: object, _vr: str) -> str | None:
    text = str(int(str(value)))
    return text if len(text) <= IS_CHARACTERS else None


def _keep(value: object, _vr: str) -> object:
    return value


_CLEANERS: dict[str, Callable[[object, str], object | None]] = {
    **dict.fromkeys(("AE", "LO", "LT", "PN", "SH", "ST", "UT"), _clean_text),
    **dict.fromkeys(("AS", "DA", "DT", "TM", "UI"), _clean_pattern),
    **dict.fromkeys(("FD", "FL", "SL", "SS", "UL", "US"), _keep),
    "CS": _clean_code,
    "DS": _clean_decimal,
    "IS": _clean_integer,
}
