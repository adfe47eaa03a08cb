"""Turns what a row says into a path below the storage root, and nothing else does.

Flow: receive|jobs|send|volumes|housekeeping|backup > [store] > the file system
Never: a name that came from the data; file names are random and checked, so that no UID or AE title reaches a path.
"""

from __future__ import annotations

import os
import re
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dicomnode.digests import digest_data_set, digest_file
from dicomnode.durable import sync_folder
from dicomnode.errors import StorageFailedError

SUFFIX = ".dcm"
_FILE_NAME = re.compile(r"[0-9a-f]{32}\.dcm")
_NODE = re.compile(r"[0-9a-f]{32}")


def make_file_name() -> str:
    """Return a random name for a file of the store."""
    return f"{uuid.uuid4().hex}{SUFFIX}"


def make_file_names(count: int) -> list[str]:
    """Return random names that share a folder of the store: one flush makes the moves of their files durable."""
    folder = uuid.uuid4().hex[:2]
    return [folder + make_file_name()[2:] for _ in range(count)]


@dataclass(frozen=True)
class Store:
    """The folders below the storage root.

    `spool/<node>/` holds files that are empty, being written, or whole with a row that may not be committed yet, one
    folder for each running process;
    `store/<first 2 hex>/` those that are indexed; `conflicts/` what came again with other content; `fetched/<query
    id>/` what C-GET brought, until it is received; `outputs/<job id>/` what the node made; `damaged/` what the disk
    has changed.
    """

    root: Path

    @property
    def spool_root(self) -> Path:
        """The folder that holds one spool folder for each node."""
        return self.root / "spool"

    @property
    def is_made(self) -> bool:
        """Whether a node has run here: the root alone would not tell an empty disk from one that is not mounted."""
        return os.access(self.spool_root, os.F_OK)

    def spool_folder(self, node: str) -> Path:
        """Return the spool folder of the process `node`, 32 hexadecimal digits."""
        return self.spool_root / _checked_node(node)

    def list_spools(self) -> list[str]:
        """Return the processes that have a spool folder; what else may lie beside them is nobody's."""
        return sorted(path.name for path in self.spool_root.iterdir() if _NODE.fullmatch(path.name) and path.is_dir())

    def list_spool(self, node: str) -> dict[str, Path]:
        """Return what lies in the spool of `node`, by the name that each file will have in the store."""
        return {
            f"{path.name}{SUFFIX}": path
            for path in sorted(self.spool_folder(node).iterdir())
            if _FILE_NAME.fullmatch(f"{path.name}{SUFFIX}")
        }

    def instance_path(self, file_name: str) -> Path:
        """Return where an indexed instance stands (`instances.file_name`)."""
        return self.root.joinpath("store", file_name[:2], _checked(file_name))

    def conflict_path(self, file_name: str) -> Path:
        """Return where a refused duplicate stands (`conflicts.file_name`)."""
        return self.root / "conflicts" / _checked(file_name)

    def find_instance(self, file_name: str) -> Path:
        """Return where an indexed instance stands now: in the store, or still in a spool after a failed move."""
        path = self.instance_path(file_name)
        if path.exists():
            return path
        return next(self.spool_root.glob(f"*/{file_name.removesuffix(SUFFIX)}"), path)

    def damaged_path(self, file_name: str) -> Path:
        """Return where a file stands that is not what was received, out of the way of one that is."""
        return self.root / "damaged" / _checked(file_name)

    def outputs_folder(self, job_id: int) -> Path:
        """Return the folder of what one job made."""
        return self.root / "outputs" / f"{job_id:d}"

    def fetched_folder(self, query_id: int) -> Path:
        """Return the folder of what a query fetched, until it is received."""
        return self.fetched_root / f"{query_id:d}"

    @property
    def fetched_root(self) -> Path:
        """The folder that holds one folder for each query that fetches over its own association."""
        return self.root / "fetched"

    @property
    def restoring_mark(self) -> Path:
        """The file that is there while a backup is being restored, and after one was not."""
        return self.root / "restoring"

    def make_folders(self) -> None:
        """Make every folder that is not there yet, durably.

        Raises
        ------
        StorageFailedError
            If a folder cannot be made; those made so far stay. Or if half a backup was restored here.
        """
        if self.restoring_mark.exists():
            raise StorageFailedError(
                f"storage root {self.root}: a backup was not restored to its end; empty it, and restore again"
            )
        store = self.root / "store"
        folders = [self.spool_root, store, self.root / "conflicts", self.root / "outputs", self.fetched_root]
        folders += [self.root / "damaged", *(store / f"{number:02x}" for number in range(256))]
        try:
            self.root.mkdir(mode=0o750, parents=True, exist_ok=True)
            for folder in folders:
                folder.mkdir(mode=0o750, exist_ok=True)
            for folder in (store, self.root):
                sync_folder(folder)
        except OSError as error:
            raise StorageFailedError(f"storage root {self.root}: {error.strerror}; it must be writable") from error


class FoundDamage(NamedTuple):
    """What is wrong with a file: it holds something else, or cannot be read at all, for now at least."""

    text: str
    is_changed: bool


def find_instance_damage(store: Store, file_name: str, sha256: str) -> FoundDamage | None:
    """Return what is wrong with the file of an indexed instance; None where it holds what was received.

    Raises
    ------
    StorageFailedError
        If the folder that should hold it is gone: nothing can be said of the file.
    """
    path = store.find_instance(file_name)
    try:
        found = digest_data_set(
            path if path.exists() else store.find_instance(file_name)
        )  # it may just have been moved
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise StorageFailedError(f"{path.parent} is not there; is its disk mounted?") from None
        return FoundDamage(f"{file_name} is missing", is_changed=False)
    except OSError as error:
        return FoundDamage(f"{file_name} cannot be read: {error.strerror}", is_changed=False)
    if found == sha256:
        return None
    return FoundDamage(f"{file_name} has the SHA-256 {found}, {sha256} was received", is_changed=True)


def find_output_damage(store: Store, path: str, sha256: str) -> FoundDamage | None:
    """Return what is wrong with the file of an output, by its path below the storage root; as of an instance's."""
    try:
        found = digest_file(store.root / path)
    except FileNotFoundError:
        if not (store.root / "outputs").is_dir():
            raise StorageFailedError(f"{store.root / 'outputs'} is not there; is its disk mounted?") from None
        return FoundDamage(f"{path} is missing", is_changed=False)
    except OSError as error:
        return FoundDamage(f"{path} cannot be read: {error.strerror}", is_changed=False)
    if found == sha256:
        return None
    return FoundDamage(f"{path} has the SHA-256 {found}, {sha256} was written", is_changed=True)


def _checked(file_name: str) -> str:
    if not _FILE_NAME.fullmatch(file_name):
        raise ValueError(f"a file name is 32 hexadecimal digits and .dcm, not {file_name!r}")
    return file_name


def _checked_node(node: str) -> str:
    if not _NODE.fullmatch(node):
        raise ValueError(f"a node is 32 hexadecimal digits, not {node!r}")
    return node
