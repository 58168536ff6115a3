"""Facts about software and hardware for the pages of all studies."""

import datetime
import os

import jax

from unclip_jax.version import __version__


def environment() -> dict[str, str]:
    """Returns device, versions and date; JSON-ready."""
    return {
        "device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores",
        "jax": jax.__version__,
        "code_version": __version__,
        "date": datetime.date.today().isoformat(),
    }
