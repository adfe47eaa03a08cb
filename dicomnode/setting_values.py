"""What one value of the configuration may be: each kind with its check, and the words for what is wrong with it.

Flow: settings > [setting_values] > uids
Never: two values weighed against each other (`settings` does that); a secret in a message.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from dicomnode.uids import STORAGE_SOP_CLASSES, TRANSFER_SYNTAXES, find_keyword

AE_TITLE_MAX_CHARACTERS = 16  # PS3.5 6.2, VR AE
SHA256_DIGITS = 64
SECONDS_AT_MOST = 20 * 86400  # a socket takes no time-out of 2**31 ms, which is 24.8 days
DAYS_AT_MOST = 36500
COUNT_AT_MOST = 2**31 - 1  # INTEGER of SQL
BYTES_AT_MOST = 2**63 - 1  # BIGINT of SQL, off_t


class Section(BaseModel):
    """A table of the file: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def check_ae_title(value: str) -> str:
    """Return an AE title without its insignificant spaces, or say what is wrong with it (PS3.5 6.2, VR AE)."""
    title = value.strip(" ")
    if not title:
        raise ValueError("an AE title is 1 to 16 characters, this one is empty")
    if len(title) > AE_TITLE_MAX_CHARACTERS:
        raise ValueError(f"an AE title is 1 to 16 characters, this one has {len(title)}")
    if bad := sorted({c for c in title if c == "\\" or not " " <= c <= "~"}):
        raise ValueError(f"an AE title holds printable ASCII without backslash, this one holds {bad[0]!r}")
    return title


def check_host(value: str) -> str:
    """Return a host without white space around it; raises ValueError where it can be none."""
    host = value.strip()
    try:
        host.encode("idna")  # as sockets do: no part between dots is empty, or longer than 63 bytes
    except UnicodeError:
        host = ""
    if not host or any(c.isspace() or c == "/" or not c.isprintable() for c in host):
        raise ValueError(f"a host is a name or an IP address, this is {value!r}")
    return host


def _check_optional_host(value: str) -> str:
    return check_host(value) if value else value


def _check_path(value: str) -> str:
    if value:
        _check_folder(Path(value))
    return value


def _check_folder(value: Path) -> Path:
    if not (value.is_absolute() and str(value).isprintable()):  # nobody chose the folder that the node is started in
        raise ValueError(f"a path from / on is needed, this is {str(value)!r}")
    return value


def _check_database_url(value: str) -> str:
    if value and not re.match(r"(sqlite:///[^?]|postgresql(\+psycopg)?://)", value):
        # The value may hold a password.
        raise ValueError(
            'a database is written as "postgresql+psycopg://user@host/name" or "sqlite:////folder/file"; "" is SQLite '
            "below node.storage_root"
        )
    return value


def _check_peer_host(value: str) -> str:
    if "/" not in value:
        return check_host(value)
    try:
        return str(ipaddress.ip_network(value.strip()))
    except ValueError as error:
        raise ValueError(f"a network is written as 10.1.2.0/24, this is {value!r}: {error}") from error


def _check_sha256(value: str) -> str:
    digits = value.strip().replace(":", "").lower()
    if digits and not re.fullmatch(f"[0-9a-f]{{{SHA256_DIGITS}}}", digits):
        raise ValueError(
            f"a SHA-256 fingerprint is {SHA256_DIGITS} hexadecimal digits, with colons or without, this has "
            f"{len(digits)} characters; openssl x509 -noout -fingerprint -sha256 -in FILE shows it"
        )
    return digits


def _check_description(value: str) -> str:
    text = value.strip()
    if not text or not text.isprintable() or set(re.sub(r"\{(pet|mr)\}", "", text)) & set("\\{}"):
        raise ValueError(f"a description is one line of text, which may hold {{pet}} and {{mr}}, this is {value!r}")
    return text


def _check_objects(value: tuple[OutputObject, ...]) -> tuple[OutputObject, ...]:
    if twice := sorted({kind for kind in value if value.count(kind) > 1}):
        raise ValueError(f"each object stands once, {twice[0]!r} stands {value.count(twice[0])} times")
    return tuple(kind for kind in get_args(OutputObject) if kind in value)  # their order means nothing


def check_subject(value: str) -> str:
    """Return a certificate's subject without insignificant spaces, or say how one is written."""
    subject = re.sub(r"\s*([,=+])\s*", r"\1", value.strip().removeprefix("subject="))
    if subject and "=" not in subject:
        raise ValueError(
            f'a subject is written as "O = Hospital, CN = mr.example.org", this is {value!r}; '
            "openssl x509 -noout -subject -in FILE shows it"
        )
    return subject


def _check_sop_class(value: str) -> str:
    return find_keyword(STORAGE_SOP_CLASSES, value)


def _check_transfer_syntax(value: str) -> str:
    return find_keyword(TRANSFER_SYNTAXES, value)


def _check_pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"a regular expression is needed, {value!r} is none: {error}") from error
    return value


AETitle = Annotated[str, AfterValidator(check_ae_title)]
Host = Annotated[str, AfterValidator(check_host)]
OptionalHost = Annotated[str, AfterValidator(_check_optional_host)]
PeerHost = Annotated[str, AfterValidator(_check_peer_host)]
AbsolutePath = Annotated[str, AfterValidator(_check_path)]
Folder = Annotated[Path, AfterValidator(_check_folder)]
DatabaseUrl = Annotated[str, AfterValidator(_check_database_url)]
Seconds = Annotated[float, Field(gt=0, le=SECONDS_AT_MOST)]
Count = Annotated[int, Field(ge=1, le=COUNT_AT_MOST)]
Bytes = Annotated[int, Field(ge=0, le=BYTES_AT_MOST)]
Description = Annotated[str, AfterValidator(_check_description), Field(max_length=64)]  # PS3.5 6.2, VR LO
Sha256 = Annotated[str, AfterValidator(_check_sha256)]
Subject = Annotated[str, AfterValidator(check_subject)]
SopClass = Annotated[str, AfterValidator(_check_sop_class)]
TransferSyntax = Annotated[str, AfterValidator(_check_transfer_syntax)]
Pattern = Annotated[str, Field(max_length=200), AfterValidator(_check_pattern)]
Port = Annotated[int, Field(ge=1, le=65535)]
Permission = Literal["store", "receive"]
Service = Literal["find", "move", "get"]
Profile = Literal["default", "paper"]
DynamicPet = Literal["refuse", "mean"]
OutputObject = Literal["reg", "pt", "rgb", "multiframe", "blending"]
Compression = Literal["none", "jpeg-ls", "jpeg-2000"]
OutputObjects = Annotated[tuple[OutputObject, ...], AfterValidator(_check_objects)]


def is_loopback(host: str) -> bool:
    """Tell whether an address or name means this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
