"""The registry: the only list of all stages.

To add a stage: one file in stages/ that ends in an `ENTRY`, and one line in STAGES.
"""

from unclip_jax.core.checks import UserError, one_of
from unclip_jax.stages import (
    classifier,
    clip,
    dalle,
    decoder,
    dvae,
    embedding_prior,
    prior,
    prior_ar,
    text_base,
    text_encoder,
    upsampler,
)
from unclip_jax.stages.entry import ROLES, StageEntry

STAGES: dict[str, StageEntry] = {
    entry.name: entry
    for entry in (
        clip.ENTRY,
        text_encoder.ENTRY,
        prior.ENTRY,
        prior_ar.ENTRY,
        embedding_prior.ENTRY,
        dalle.ENTRY,
        decoder.ENTRY,
        text_base.ENTRY,
        dvae.ENTRY,
        upsampler.ENTRY,
        classifier.ENTRY,
    )
}


def stage_entry(name: str) -> StageEntry:
    """Returns the stage called `name`.

    Raises:
        UserError: there is no such stage.
    """
    return STAGES[one_of("stage", name, STAGES)]


def generator_entry(name: str) -> StageEntry:
    """Returns the stage called `name`, which must generate samples.

    Raises:
        UserError: there is no such stage, or it encodes captions or guides others.
    """
    entry, silent = stage_entry(name), ("encoder", "guide")
    if entry.role in silent:
        names = ", ".join(entry.name for entry in STAGES.values() if entry.role not in silent)
        raise UserError(f"stage {name!r} generates nothing; use one of {names}.")
    return entry


def run_folders(*roles: str) -> dict[str, StageEntry]:
    """Returns the folders of stages in a run, in the order of a chain, with their stages.

    Args:
        roles: roles of the stages; none = all.
    """
    entries = sorted(STAGES.values(), key=lambda entry: ROLES.index(entry.role))
    return {
        folder: entry
        for entry in entries
        if entry.role in (roles or ROLES)
        for folder in entry.folders
    }


def chains() -> tuple[str, ...]:
    """Returns the names of the chains, the default one first."""
    return tuple(dict.fromkeys(entry.chain for entry in STAGES.values() if entry.chain))


def chain_folders(chain: str = "unclip", *roles: str) -> dict[str, StageEntry]:
    """Returns the folders of the stages of a chain, in its order, with their stages.

    Raises:
        UserError: there is no such chain.
    """
    one_of("chain", chain, chains())
    return {
        folder: entry
        for folder, entry in run_folders(*roles).items()
        if entry.chain == chain or entry.role in ("encoder", "upsampler")
    }


def default_chain(chain: str = "unclip") -> dict[str, StageEntry]:
    """Returns the folders of a complete chain to train: those of the first stage of each role.

    Stages of this chain take precedence over those that all chains may use.
    """
    folders = chain_folders(chain)
    ordered = sorted(folders.values(), key=lambda entry: entry.chain != chain)
    first = {entry.role: entry.name for entry in reversed(ordered)}
    return {f: entry for f, entry in folders.items() if entry.name == first[entry.role]}


def folder_entry(folder: str) -> StageEntry:
    """Returns the stage of a folder of a run, such as the upsampler for "upsampler_256".

    Raises:
        UserError: no stage has such a folder.
    """
    folders = run_folders()
    return folders[one_of("stage", folder, folders)]
