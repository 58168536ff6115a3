"""Trained priors of DALLE2-pytorch and MindEye2 as exports of `embedding_prior`.

A file contains the state of a `DiffusionPriorNetwork` or a `PriorNetwork`, alone or within a
`DiffusionPrior` (names below "net." or "diffusion_prior.net."). Sizes are inferred from tensors.
Options that cannot be inferred are those of the published models: MindEye2 attends in both
directions and adds its queries to the noised tokens.
"""

import dataclasses
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.core.checks import UserError
from unclip_jax.core.config import as_dict
from unclip_jax.core.types import Params
from unclip_jax.handoff.export import write_export
from unclip_jax.handoff.manifest import Manifest
from unclip_jax.models.condition_tokens import ConditionConfig
from unclip_jax.models.dalle2_pytorch_prior import BUCKETS, Dalle2PytorchConfig, rotary_rates
from unclip_jax.models.embedding_prior import EmbeddingPriorConfig
from unclip_jax.objectives.gaussian import DiffusionConfig, SamplingConfig
from unclip_jax.stages import embedding_prior
from unclip_jax.stages.embedding_prior_config import EmbeddingPriorStageConfig
from unclip_jax.weight_files import tensor_table
from unclip_jax.weight_files.tensor_source import TensorSource, open_tensors
from unclip_jax.weight_files.tensor_table import Entry

PREFIXES = ("", "net.", "diffusion_prior.net.", "model.net.", "module.net.")
LAYERS = "causal_transformer.layers"
BIAS = "causal_transformer.rel_pos_bias.relative_attention_bias.weight"
TIMESTEPS = {"dalle2_pytorch": 1000, "mindeye2": 100}  # of the published priors
FOLDER = "embedding_prior"


@dataclasses.dataclass(frozen=True)
class ConvertedPrior:
    """A prior in a file of another library.

    Attributes:
        cfg: config of the stage.
        source: its tensors.
        entries: the table from tensors to the parameters of the network.
    """

    cfg: EmbeddingPriorStageConfig
    source: TensorSource
    entries: list[Entry]

    def params(self) -> Params:
        """Reads the network, and the scale of embeddings as fitted statistics.

        Raises:
            UserError: tensors are missing, extra or of another shape; lists all of them.
        """
        init = embedding_prior.make(self.cfg).init
        abstract = nn.meta.unbox(jax.eval_shape(init, jax.random.key(0)))
        network = tensor_table.fill(self.source, self.entries, abstract["network"])
        z = self.cfg.model.target[-1]
        fitted = {one.name: _statistics(z, 1.0) for one in self.cfg.model.conditions}
        return {"network": network, "fitted": {**fitted, "y": _statistics(z, z**-0.5)}}


def _statistics(z: int, std: float) -> dict[str, np.ndarray]:
    return {"mean": np.zeros(z, np.float32), "std": np.full(z, std, np.float32)}


def network_of(source: TensorSource) -> TensorSource | None:
    """Returns the tensors of the prior network in a file; None if it has none."""
    for prefix in PREFIXES:
        if f"{prefix}{BIAS}" in source.shapes:
            return source.below(prefix)
    return None


def read(path: pathlib.Path) -> ConvertedPrior | None:
    """Opens a prior; None if the file has other contents.

    Raises:
        UserError: the file cannot be read, or the variant is not supported.
    """
    if path.is_dir():
        return None
    whole = open_tensors(path)
    source = network_of(whole)
    if source is None:
        return None
    source = _without_rotary(source)
    mindeye = "null_brain_embeds" in source.shapes
    sizes = _sizes(source, mindeye=mindeye)
    steps = TIMESTEPS["mindeye2" if mindeye else "dalle2_pytorch"]
    if (table := source.shapes.get("to_time_embeds.0.weight")) is not None:
        steps = table[0]
    for name, shape in whole.shapes.items():
        if name.endswith("noise_scheduler.betas"):
            steps = shape[0]
    cfg = _stage(source, sizes, steps=steps, mindeye=mindeye)
    return ConvertedPrior(cfg, source, entries(sizes, mindeye=mindeye))


def _without_rotary(source: TensorSource) -> TensorSource:
    """Returns the source without the rates of rotary positions, which are constants here.

    Raises:
        UserError: the rates differ from these constants.
    """
    names = [name for name in source.shapes if name.endswith("rotary_emb.freqs")]
    for name in names[:1]:
        stored = source.read(name)
        if not np.allclose(stored, rotary_rates(2 * len(stored)), rtol=1e-4):
            raise UserError(
                f"{source.where} has learned {name}, which is not supported; give a prior with "
                "constant rates."
            )
    return source.without(names)


def _sizes(source: TensorSource, *, mindeye: bool) -> Dalle2PytorchConfig:
    """Infers the sizes of a network from the shapes of its tensors."""
    shapes = source.shapes
    z = shapes["null_image_embed"][-1]
    depth = 1 + max(
        int(name.removeprefix(f"{LAYERS}.").partition(".")[0])
        for name in shapes
        if name.startswith(f"{LAYERS}.")
    )
    buckets, heads = shapes[BIAS]
    if buckets != BUCKETS:
        raise UserError(f"{source.where} has {buckets} distances in {BIAS}; expected {BUCKETS}.")
    table = "to_time_embeds.0.weight" in shapes
    time = shapes["to_time_embeds.0.weight" if table else "to_time_embeds.0.1.net.2.weight"]
    hidden = shapes[f"{LAYERS}.0.1.5.weight"][1]
    queries = "last"
    if mindeye:
        rows = shapes.get("learned_query", (0,))[0]
        tokens = shapes["null_image_embed"][0]
        queries = {0: "none", tokens: "positions"}.get(rows, "all_positions")
    return Dalle2PytorchConfig(
        depth=depth,
        heads=heads,
        head_dim=shapes[f"{LAYERS}.0.0.to_kv.weight"][0] // 2,
        mlp_ratio=hidden / z,
        context=0 if mindeye else shapes["null_text_encodings"][1],
        text_tokens=1 if mindeye else shapes["null_text_embeds"][1],
        time_tokens=time[1] // z if table else time[0] // z,
        image_tokens=_spread(source, "to_image_embeds.0.weight", z),
        time_table=table,
        queries=queries,
        causal=not mindeye,
        norm_in="causal_transformer.init_norm.g" in shapes,
        norm_out="causal_transformer.norm.g" in shapes,
        project="causal_transformer.project_out.weight" in shapes,
        norm_hidden=f"{LAYERS}.0.1.3.g" in shapes,
    )


def _spread(source: TensorSource, name: str, z: int) -> int:
    return source.shapes[name][0] // z if name in source.shapes else 1


def _stage(
    source: TensorSource, sizes: Dalle2PytorchConfig, *, steps: int, mindeye: bool
) -> EmbeddingPriorStageConfig:
    """Returns the stage: scaled by the square root of the width, target x_0, cosine schedule."""
    length, z = source.shapes["null_image_embed"]
    if mindeye:
        conditions = (ConditionConfig("x", (length, z)),)
        target: tuple[int, ...] = (length, z)
    else:
        features = ConditionConfig("text_encodings", (sizes.context, z), ragged=True)
        conditions, target = (ConditionConfig("text_embed", (z,)), features), (z,)
    network = EmbeddingPriorConfig(
        conditions=conditions,
        target=target,
        width=z,
        depth=sizes.depth,
        heads=sizes.heads,
        ridge=False,
        skips=False,
        num_timesteps=steps,
        dalle2_pytorch=sizes,
    )
    return EmbeddingPriorStageConfig(
        network,
        DiffusionConfig(target="x_0", num_timesteps=steps),
        SamplingConfig(steps=str(min(64, steps))),
        scaling="raw" if mindeye else "unit",
    )


def entries(cfg: Dalle2PytorchConfig, *, mindeye: bool) -> list[Entry]:
    """Returns the table of the network's tensors."""
    table = [Entry("distances", BIAS)]
    null = "null_brain_embeds" if mindeye else "null_text_embeds"
    table.append(Entry("null_condition", null, "same" if mindeye else "row"))
    table.append(Entry("null_image", "null_image_embed"))
    if cfg.queries != "none":
        table.append(Entry("query", "learned_query"))
    if cfg.context:
        table.append(Entry("null_features", "null_text_encodings", "row"))
    if cfg.time_table:
        table.append(Entry("time_table", "to_time_embeds.0.weight"))
    else:
        for index, name in enumerate(("0.0", "1.0", "2")):
            table += tensor_table.linear(f"time_{index}", f"to_time_embeds.0.1.net.{name}")
    for name, count, theirs in (
        ("text_in", cfg.text_tokens, "to_text_embeds.0"),
        ("image_in", cfg.image_tokens, "to_image_embeds.0"),
    ):
        if count > 1:
            table += tensor_table.linear(name, theirs)
    for index in range(cfg.depth):
        table += _block(cfg, index)
    top = "causal_transformer."
    if cfg.norm_in:
        table.append(Entry("norm_in/scale", f"{top}init_norm.g"))
    if cfg.norm_out:
        table.append(Entry("norm_out/scale", f"{top}norm.g"))
    if cfg.project:
        table.append(Entry("out/kernel", f"{top}project_out.weight", "linear"))
    return tensor_table.under(table, leaf="dalle2_pytorch/")


def _block(cfg: Dalle2PytorchConfig, index: int) -> list[Entry]:
    ours, theirs = f"attention_{index}/", f"{LAYERS}.{index}.0."
    mlp, feed = f"mlp_{index}/", f"{LAYERS}.{index}.1."
    table = [
        Entry(f"{ours}norm/scale", f"{theirs}norm.g"),
        Entry(f"{ours}null_kv", f"{theirs}null_kv"),
        Entry(f"{ours}q/kernel", f"{theirs}to_q.weight", "linear"),
        Entry(f"{ours}kv/kernel", f"{theirs}to_kv.weight", "linear"),
        Entry(f"{ours}out/kernel", f"{theirs}to_out.0.weight", "linear"),
        Entry(f"{ours}norm_out/scale", f"{theirs}to_out.1.g"),
        Entry(f"{mlp}norm/scale", f"{feed}0.g"),
        Entry(f"{mlp}fc_1/kernel", f"{feed}1.weight", "linear"),
        Entry(f"{mlp}fc_2/kernel", f"{feed}5.weight", "linear"),
    ]
    return [*table, Entry(f"{mlp}norm_hidden/scale", f"{feed}3.g")] if cfg.norm_hidden else table


def convert(
    prior: ConvertedPrior, out: pathlib.Path, *, licence: str, replace: bool = False
) -> str:
    """Writes OUT/embedding_prior/export; returns the name of the folder.

    Raises:
        UserError: tensors do not fit, or an export exists already.
    """
    folder = out / FOLDER
    if folder.exists() and not replace:
        raise UserError(f"{out} has {FOLDER} already; give another --out, or remove it.")
    card = Manifest(
        stage="embedding_prior",
        size="imported",
        step=0,
        config=as_dict(prior.cfg),
        embed_dim=prior.cfg.model.target[-1],
        embedding="unit" if prior.cfg.scaling == "unit" else "raw",
        data=f"converted from {pathlib.Path(prior.source.where).name}",
        licence=licence,
    )
    params = jax.tree.map(jnp.asarray, prior.params())
    write_export(folder / "export", params=params, manifest=card, tokenizer_dir=None)
    return FOLDER
