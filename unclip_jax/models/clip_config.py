"""The size and the parts of a CLIP."""

import dataclasses

from unclip_jax.backbones.transformer import TransformerConfig
from unclip_jax.core.checks import UserError, divisible, one_of

TOWERS = ("image", "text")


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """Size of both towers.

    Attributes:
        embed_dim: length z of the shared embeddings.
        image_size: side of the input image.
        patch_size: side of a patch; must divide the image.
        image_width: of the image tower.
        image_depth: its blocks.
        image_heads: its heads.
        text_width: of the text tower.
        text_depth: its blocks.
        text_heads: its heads.
        context: length of every caption, start and end tokens included.
        vocab_size: rows of the token table.
        activation: "gelu" (exact) or "quick_gelu" (OpenAI's weights).
        stem: "patches" (the paper's linear map) or "conv" (a few strided convolutions).
        position_scale: factor on the deviation of the image positions at the start; the paper's 1
            leaves them far below the patches, too faint for a run of a few hundred steps.
        image_mlp: hidden width of the image tower's MLPs; None = 4 times the width.
        text_mlp: likewise of the text tower.
        towers: "image", "text" or both; public pipelines may have only one.
        temperature: with the learned temperature; pipelines have towers without it.
        projection: False = embeddings are the pooled features themselves (a bare text tower).
        reads_time: the image tower also takes the timestep of noised images, which is added to its
            class token (as GLIDE's noise-aware CLIP, arXiv 2112.10741, section 4.4).
        image_mean: per channel, of pixels in [0, 1].
        image_std: per channel, likewise.
        remat: "none", "block" or "dots".
        dtype: compute dtype.
    """

    embed_dim: int
    image_size: int
    patch_size: int
    image_width: int
    image_depth: int
    image_heads: int
    text_width: int
    text_depth: int
    text_heads: int
    context: int
    vocab_size: int
    activation: str = "quick_gelu"
    stem: str = "patches"
    position_scale: float = 1.0
    image_mlp: int | None = None
    text_mlp: int | None = None
    towers: tuple[str, ...] = TOWERS
    temperature: bool = True
    projection: bool = True
    reads_time: bool = False
    image_mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    remat: str = "none"
    dtype: str = "float32"

    def __post_init__(self):
        divisible("clip.image_size", self.image_size, self.patch_size, "patches tile the image.")
        one_of("clip.stem", self.stem, ("patches", "conv"))
        if self.stem == "conv" and self.patch_size.bit_count() != 1:
            raise UserError(
                f"clip.patch_size is {self.patch_size}; a conv stem halves the side step by step, "
                "so use a power of two."
            )
        for name in self.towers:
            one_of("clip tower", name, TOWERS)
        if self.temperature and set(self.towers) != set(TOWERS):
            raise UserError(
                f"clip.temperature is on, but clip.towers is {list(self.towers)}; a temperature "
                "belongs to a pair of towers, so turn it off."
            )
        if not self.projection and (self.towers, self.text_width) != (("text",), self.embed_dim):
            raise UserError(
                "clip.projection is off, which only a text tower alone can be, with "
                f"clip.embed_dim ({self.embed_dim}) equal to clip.text_width ({self.text_width})."
            )

    @property
    def image_tower(self) -> TransformerConfig:
        """The image tower's stack."""
        size = {"width": self.image_width, "depth": self.image_depth, "heads": self.image_heads}
        return self.tower(**size, mlp=self.image_mlp, causal=False)

    @property
    def text_tower(self) -> TransformerConfig:
        """The text tower's stack."""
        size = {"width": self.text_width, "depth": self.text_depth, "heads": self.text_heads}
        return self.tower(**size, mlp=self.text_mlp, causal=True)

    def tower(
        self, *, width: int, depth: int, heads: int, causal: bool, mlp: int | None = None
    ) -> TransformerConfig:
        """One tower's stack."""
        return TransformerConfig(
            width=width,
            depth=depth,
            heads=heads,
            causal=causal,
            mlp_ratio=4.0 if mlp is None else mlp / width,
            activation=self.activation,
            remat=self.remat,
            dtype=self.dtype,
        )
