"""Finds the files that come with the node beside its code: the example configuration and the systemd units.

Flow: cli > [shipped] > the installed package, or the checkout
Never: a path that depends on the folder the command was called from.
"""

from __future__ import annotations

from pathlib import Path

from dicomnode.errors import ConfigurationError

EXAMPLE = Path("config/dicomnode.example.toml")
UNITS = Path("systemd")


def find_shipped(name: Path) -> Path:
    """Return where a shipped file or folder stands.

    Raises
    ------
    ConfigurationError
        If this installation lacks it.
    """
    package = Path(__file__).parent
    for place in (package / "shipped_files" / name, package.parent / name):
        if place.exists():
            return place
    raise ConfigurationError(f"{name} is missing from this installation; install dicomnode-fusion again")
