"""Where edgekit keeps what it made for itself: the cache, and the user's list of devices."""

from __future__ import annotations

import os
from pathlib import Path

from edge.cache import cache_folder

__all__ = ["cache_folder", "devices_files"]


def devices_files() -> tuple[Path, ...]:
    """Return the places of devices.toml: EDGEKIT_DEVICES alone, else this folder and then the user's configuration."""
    if given := os.environ.get("EDGEKIT_DEVICES"):
        return (Path(given),)
    base = os.environ.get("XDG_CONFIG_HOME")
    config = Path(base) if base else Path.home() / ".config"
    return (Path("devices.toml"), config / "edgekit" / "devices.toml")
