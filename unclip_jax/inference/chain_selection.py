"""The exports of a run directory that form the chain to load, by its name or that of its prior."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from unclip_jax.core.checks import UserError, one_of
from unclip_jax.handoff import load
from unclip_jax.handoff.manifest import Manifest
from unclip_jax.inference.cascade import VALUES
from unclip_jax.stages import registry


def prior_names() -> tuple[str, ...]:
    """Returns the folders of the priors that a chain can have."""
    return tuple(registry.run_folders("prior"))


def find_stages(run_dir: pathlib.Path, *, required: Sequence[str]) -> dict[str, pathlib.Path]:
    """Returns all exports of a run directory by folder, in the order of a chain.

    Raises:
        UserError: a required one is missing.
    """
    return load.find_stages(run_dir, names=registry.run_folders(), required=required)


class Selection(NamedTuple):
    """The chain of a run that is loaded, and its prior, if it has one."""

    chain: str
    prior: str | None


def select(exports: Mapping[str, pathlib.Path], name: str) -> Selection:
    """Returns the chain that a name selects.

    Args:
        exports: the exports of the run, by folder.
        name: a prior or a chain; the default prior selects whichever chain the run has.

    Raises:
        UserError: there is no such prior or chain, or the run has several and none is named.
    """
    one_of("prior or chain", name, dict.fromkeys([*prior_names(), *registry.chains()]))
    chain = name if name in registry.chains() else registry.folder_entry(name).chain

    def has(chain: str, role: str) -> bool:
        own = registry.chain_folders(chain, role)
        return any(folder in exports for folder in own) or not own

    if name == prior_names()[0]:
        chains = [each for each in registry.chains() if has(each, "decoder")]
        whole = [each for each in chains if each == chain or has(each, "prior")]
        if len(whole) > 1:
            flags = " or ".join(f"--chain={each}" for each in whole)
            raise UserError(f"the run holds the chains {' and '.join(whole)}; choose by {flags}.")
        chain = next(iter([*whole, *chains]), None) or _chain_of_encoder(exports, chain)
    priors = list(registry.chain_folders(chain, "prior"))
    return Selection(chain, name if name in priors else next(iter(priors), None))


def _chain_of_encoder(exports: Mapping[str, pathlib.Path], default: str) -> str:
    """Returns the chain of the encoder that exports without a decoder hold, or need.

    Args:
        exports: by folder.
        default: for exports without an encoder.
    """
    encoders = registry.run_folders("encoder")
    own = [entry for folder, entry in encoders.items() if folder in exports]
    upsamplers = registry.run_folders("upsampler").keys() & exports.keys()
    if any(load.read_manifest(exports[name]).text_width for name in upsamplers):
        own += [entry for entry in encoders.values() if "text_features" in entry.yields]
    return next((entry.chain for entry in own), default)


def upsampler_exports(exports: Mapping[str, pathlib.Path]) -> dict[str, pathlib.Path]:
    """Returns upsamplers and encoders of a run without a decoder; {} where there are none."""
    if exports.keys() & registry.run_folders("decoder").keys() or not (
        exports.keys() & registry.run_folders("upsampler").keys()
    ):
        return {}
    parts = registry.run_folders("encoder", "upsampler")
    return {folder: path for folder, path in exports.items() if folder in parts}


def chain_exports(
    run_dir: pathlib.Path, exports: Mapping[str, pathlib.Path], selection: Selection, *, name: str
) -> dict[str, pathlib.Path]:
    """Returns the exports that may form a chain: one prior, one decoder, and all others."""
    chain, prior = selection
    own = [folder for folder in registry.chain_folders(chain, "decoder") if folder in exports]
    if (name != prior_names()[0] and prior and prior not in exports) or not own:
        needed = registry.default_chain(chain).items()
        ends = ("prior", "decoder") if chain != "unclip" else ("encoder", "prior", "decoder")
        folders = (prior if e.role == "prior" else f for f, e in needed if e.role in ends)
        find_stages(run_dir, required=tuple(str(folder) for folder in folders))
    if len(own) > 1:
        raise UserError(
            f"{run_dir} has several decoders ({', '.join(own)}); move all but one to run "
            "directories of their own."
        )
    alternatives = registry.run_folders("prior", "decoder", "guide").keys() - {prior, *own}
    return {folder: path for folder, path in exports.items() if folder not in alternatives}


def own_upsamplers(
    exports: Mapping[str, pathlib.Path], manifests: Mapping[str, Manifest]
) -> dict[str, pathlib.Path]:
    """Returns the exports without the upsamplers that enlarge images of another chain's size."""
    size, own = None, {}
    for name, path in exports.items():
        manifest = manifests[name]
        if registry.folder_entry(name).role == "upsampler" and manifest.low_res_size != size:
            continue
        size = manifest.image_size or size
        own[name] = path
    return own


def check_complete(
    run_dir: pathlib.Path,
    exports: Mapping[str, pathlib.Path],
    configs: Mapping[str, Any],
    selection: Selection,
) -> None:
    """Rejects a chain that lacks a stage that another of its stages needs, and names the first."""
    folders = registry.chain_folders(selection.chain)
    needed, missing = {"image"}, []
    for name, entry in reversed(folders.items()):
        if not needed & set(entry.yields) or (entry.role == "prior" and name != selection.prior):
            continue
        if name in configs:
            reads = {VALUES.get(condition, condition) for condition in entry.reads(configs[name])}
            needed = needed - set(entry.yields) | reads
        elif entry.role in ("encoder", "prior"):
            missing.append(name)
            needed |= {"z_txt"} if entry.role == "prior" else set()
    if missing:
        raise load.not_exported(run_dir, missing[-1], exports)
