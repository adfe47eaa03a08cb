"""`dicomnode backup|restore|verify`: everything a node holds to another place, back, and compared.

Flow: cli > [backup] > backup/make, backup/restore, backup/verify
Never: anything overwritten; a difference that is not named.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path

from dicomnode.backup.make import make_backup
from dicomnode.backup.restore import restore_backup
from dicomnode.backup.verify import Difference, verify_backup, verify_node
from dicomnode.cli.listings import open_node_database
from dicomnode.cli.output import show, show_instants, write_json
from dicomnode.database.store import Store
from dicomnode.errors import UsageError
from dicomnode.settings_file import load_settings

EXIT_DIFFERENT = 3


def backup(arguments: argparse.Namespace) -> int:
    """Make a backup of the node, which may run; 3 where files were damaged already."""
    settings, target = load_settings(arguments.config), Path(arguments.target).resolve()
    if target.is_relative_to(settings.node.storage_root.resolve()):
        raise UsageError(f"{target}: it is below node.storage_root; name a folder elsewhere, best on another disk")
    with open_node_database(settings) as database:
        made = make_backup(Store(settings.node.storage_root), database, target, time.time)
    manifest = made.manifest
    differences = [Difference(entry.path, entry.damage) for entry in made.damaged]
    found = {"files": manifest.file_count, "size_bytes": manifest.size_bytes, "made_at": manifest.made_at}
    return _tell(arguments, f"{target}: {manifest.file_count} files, {manifest.size_bytes} bytes", found, differences)


def restore(arguments: argparse.Namespace) -> int:
    """Make a node of a backup, in an empty storage root and an empty database."""
    settings = load_settings(arguments.config)
    manifest = restore_backup(Path(arguments.source).absolute(), settings)
    found = {"files": manifest.file_count, "size_bytes": manifest.size_bytes, "made_at": manifest.made_at}
    line = f"{settings.node.storage_root}: {manifest.file_count} files; start the node: systemctl start dicomnode"
    return _tell(arguments, line, found, [])


def verify(arguments: argparse.Namespace) -> int:
    """Compare a backup with its manifest, or the node's files with its rows; 3 where something differs."""
    if arguments.backup is not None:
        folder = Path(arguments.backup).absolute()
        manifest, differences = verify_backup(folder)
        count, what = manifest.file_count, str(folder)
    else:
        settings = load_settings(arguments.config)
        with open_node_database(settings) as database:
            count, differences = verify_node(Store(settings.node.storage_root), database)
        what = str(settings.node.storage_root)
    return _tell(arguments, f"{what}: {count} files, {len(differences)} differences", {"files": count}, differences)


def _tell(arguments: argparse.Namespace, line: str, found: dict[str, float], differences: list[Difference]) -> int:
    if arguments.json:
        write_json({**show_instants(found), "differences": [asdict(one) for one in differences]})
    else:
        sys.stdout.writelines(f"{show(one.path)}: {show(one.text)}\n" for one in differences)
        sys.stdout.write(f"{line}\n")
    return EXIT_DIFFERENT if differences else 0
