"""Exports in object stores, read through local copies.

The manifest of an export has the digests of its files, so copies are stored by the digest of their
manifest: an export is copied once, and again after it was replaced. Files are compared with the
manifest when they are copied, and again, as all exports are, when they are read.
"""

import pathlib

from unclip_jax.core import digests, storage
from unclip_jax.core.checks import UserError
from unclip_jax.core.storage import Location, Url
from unclip_jax.handoff.export import MANIFEST, PARAMS, TENSORS, TOKENIZER
from unclip_jax.handoff.manifest import file_digests

_DIGESTED = (f"{PARAMS}/", f"{TOKENIZER}/", TENSORS)  # other digests are of JSON values


def local_export(place: str | Location) -> pathlib.Path:
    """Returns a local path unchanged, and for a URL a local copy of the export there.

    Raises:
        UserError: there is no complete export, it cannot be read, or its files do not fit its
            manifest.
    """
    place = storage.location(place) if isinstance(place, str) else place
    if not isinstance(place, Url):
        return place
    if not (place / MANIFEST).exists():
        raise UserError(
            f"{place} is not a finished export (there is no {place / MANIFEST}); train that stage "
            "to its end, or give the URL of the folder that holds manifest.json."
        )
    return _copy(place)


def local_run(place: Url) -> pathlib.Path:
    """Returns a local run directory with the exports of a run in an object store.

    Raises:
        UserError: it holds no export, or one that cannot be copied.
    """
    urls = {name: place / name / "export" for name in place.names()}
    exports = {name: _copy(url) for name, url in urls.items() if (url / MANIFEST).exists()}
    if not exports:
        raise UserError(
            f"{place} holds no exports; give the URL of a run directory, with a folder per stage."
        )
    contents = {name: path.name for name, path in exports.items()}
    run = storage.cache_folder() / "runs" / digests.of_json(contents)
    for name, path in exports.items():
        link = run / name / "export"
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(path.absolute(), target_is_directory=True)
    return run


def _copy(place: Url) -> pathlib.Path:
    """Returns a local copy of an export, with files that fit its manifest."""
    text = (place / MANIFEST).read_bytes()
    stored = file_digests(text, where=str(place / MANIFEST))
    names = place.files() if stored is None else [*stored, MANIFEST]
    checked = {n: d for n, d in (stored or {}).items() if n.startswith(_DIGESTED)}
    return storage.local_copy(
        place,
        names,
        key=f"exports/{digests.of_bytes(text)}",
        check=lambda copy: digests.check_files(copy, checked, advice=f"copy {place} again."),
    )
