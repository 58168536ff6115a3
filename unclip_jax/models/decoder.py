"""The decoder: noised image, CLIP image embedding and caption to eps (and variance) per pixel.

A GLIDE U-Net with its own text transformer, conditioned on z_img twice (unCLIP, arXiv 2204.06125,
section 2.1): projected and added to the timestep embedding, and projected to extra context tokens
that join the text features.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from unclip_jax.backbones.layers import LayerNorm, TimeEmbedding, compute_dtype, dense, normal
from unclip_jax.backbones.unet import UNet
from unclip_jax.backbones.unet_plan import UNetConfig
from unclip_jax.core.checks import UserError, one_of, positive
from unclip_jax.core.types import Embedding, Image, Mask, Steps, Tokens
from unclip_jax.models.text import PADDING, TextEncoder, TextEncoderConfig
from unclip_jax.models.text_condition import TextFeatures
from unclip_jax.parallel.axes import sharded

NULL_Z = ("learned", "zero")
CAPTIONS = ("own", "clip_sequence")
INPAINT_CHANNELS = 4  # known pixels (RGB) and their mask
MAP_SIDE = 8  # of the miniature's spatial map of z_img


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Size and pathways of the decoder.

    Attributes:
        unet: the U-Net; `in_channels` counts the image's channels only.
        z_dim: length of z_img.
        text_width: of the caption transformer and of all context tokens.
        text_depth: its blocks.
        text_heads: its heads.
        context: length of every caption.
        vocab_size: rows of the token table.
        num_z_tokens: context tokens projected from z_img (4 in the paper).
        null_z: replacement of a dropped z_img: a "learned" vector or "zero" (the paper names both).
        padding: of captions, "learned" or "mask".
        caption: "own": a transformer of the decoder's own reads token ids (the paper);
            "clip_sequence": projected token features and the embedding of the frozen CLIP (Karlo),
            without text_depth and text_heads; no caption is then the empty one.
        clip_text_width: width of those features.
        z_map: channels of a small spatial map of z_img, concatenated to x_t; 0 = none, as in the
            paper (a miniature-only option).
        z_map_width: hidden units of the map's network; 0 = a linear map.
        num_timesteps: length of the trained chain.
        reads_z: False replaces every z_img by the null, which makes this GLIDE, a decoder of
            captions alone.
        inpaints: four further input channels, the known pixels and their mask (GLIDE,
            arXiv 2112.10741, section 4.3), all zero without inpainting.
    """

    unet: UNetConfig
    z_dim: int
    text_width: int
    text_depth: int
    text_heads: int
    context: int
    vocab_size: int
    num_z_tokens: int = 4
    null_z: str = "learned"
    padding: str = "learned"
    caption: str = "own"
    clip_text_width: int | None = None
    z_map: int = 0
    z_map_width: int = 0
    num_timesteps: int = 1000
    reads_z: bool = True
    inpaints: bool = False

    def __post_init__(self):
        one_of("null_z", self.null_z, NULL_Z)
        one_of("padding", self.padding, PADDING)
        if one_of("decoder.caption", self.caption, CAPTIONS) == "clip_sequence":
            positive("decoder.clip_text_width", self.clip_text_width or 0)
            if self.padding != "mask":
                raise UserError(
                    "decoder.caption 'clip_sequence' hides empty slots; set decoder.padding to "
                    f"'mask', not {self.padding!r}."
                )

    @property
    def text(self) -> TextEncoderConfig:
        """Config of the caption transformer."""
        return TextEncoderConfig(
            width=self.text_width,
            depth=self.text_depth,
            heads=self.text_heads,
            context=self.context,
            vocab_size=self.vocab_size,
            padding=self.padding,
            remat=self.unet.remat,
            dtype=self.unet.dtype,
        )


class Decoder(nn.Module):
    """Maps x_t, t, z_img and caption to an image-shaped output; zero when fresh."""

    cfg: DecoderConfig

    def setup(self):
        """Creates the submodules; their names are the parameter paths of checkpoints."""
        cfg, dtype = self.cfg, compute_dtype(self.cfg.unet.dtype)
        emb_width, channels = cfg.unet.emb_width, cfg.unet.channels
        if cfg.caption == "own":
            self.text_encoder = TextEncoder(cfg.text)
        else:
            axes = ("z", "embed")
            self.text_in = dense(cfg.text_width, name="text_in", axes=axes, dtype=dtype)
            self.text_norm = LayerNorm()
        self.time = TimeEmbedding(channels, emb_width, cfg.num_timesteps, dtype)
        self.text_to_emb = dense(emb_width, name="text_to_emb", axes=("embed", "time"), dtype=dtype)
        self.z_to_emb = dense(emb_width, name="z_to_emb", axes=("z", "time"), dtype=dtype)
        tokens = cfg.num_z_tokens * cfg.text_width
        self.z_to_tokens = dense(tokens, name="z_to_tokens", axes=("z", "context"), dtype=dtype)
        if cfg.null_z == "learned":
            init = sharded(normal(0.02), "z")
            self.null_z = self.param("null_z", init, (cfg.z_dim,))
        unet = cfg.unet
        if cfg.z_map:
            if cfg.z_map_width:
                hidden = {"axes": ("z", "time"), "dtype": dtype}
                self.z_to_hidden = dense(cfg.z_map_width, name="z_to_hidden", **hidden)
            features, axes = MAP_SIDE**2 * cfg.z_map, ("time" if cfg.z_map_width else "z", "out")
            self.z_to_map = dense(features, name="z_to_map", axes=axes, dtype=dtype)
            unet = dataclasses.replace(unet, in_channels=unet.in_channels + cfg.z_map)
        if cfg.inpaints:
            unet = dataclasses.replace(unet, in_channels=unet.in_channels + INPAINT_CHANNELS)
        self.unet = UNet(unet)

    def __call__(
        self,
        x_t: Image,
        t: Steps,
        *,
        z_img: Embedding,
        tokens: Tokens,
        token_mask: Mask,
        keep_z: Bool[Array, " b"] | None = None,
        keep_text: Bool[Array, " b"] | None = None,
        text_seq: Float[Array, " b l e"] | None = None,
        z_txt: Embedding | None = None,
        inpaint: Float[Array, " b h w 4"] | None = None,
        deterministic: bool = True,
    ) -> Float[Array, " b h w o"]:
        """Computes the raw output of the U-Net, `unet.out_channels` per pixel.

        Args:
            x_t: noised image.
            t: timesteps of the trained chain.
            z_img: CLIP image embeddings, scaled by the caller.
            tokens: caption ids.
            token_mask: True at real tokens.
            keep_z: False replaces z_img by its null; None keeps all.
            keep_text: False replaces the caption by padding; None keeps all.
            text_seq: CLIP's token features, for caption "clip_sequence".
            z_txt: CLIP's raw embedding, likewise.
            inpaint: for decoders that inpaint, see `inpaint_input`; None = nothing.
            deterministic: no dropout; otherwise a "dropout" key is needed.
        """
        text = self.encode_text(
            tokens, token_mask, keep_text=keep_text, text_seq=text_seq, z_txt=z_txt
        )
        options = {"keep_z": keep_z, "inpaint": inpaint, "deterministic": deterministic}
        return self.denoise(x_t, t, z_img=z_img, text=text, **options)

    def encode_text(
        self,
        tokens: Tokens,
        token_mask: Mask,
        *,
        keep_text: Bool[Array, " b"] | None = None,
        text_seq: Float[Array, " b l e"] | None = None,
        z_txt: Embedding | None = None,
    ) -> TextFeatures:
        """Encodes captions; a dropped one is all padding.

        Raises:
            UserError: CLIP's features missing or unexpected, or `keep_text` with them.
        """
        if self.cfg.caption == "clip_sequence":
            return self._project_clip(token_mask, text_seq, z_txt, keep_text)
        if text_seq is not None or z_txt is not None:
            raise UserError("this decoder reads token ids; do not pass text_seq and z_txt.")
        if keep_text is not None:
            token_mask = token_mask & keep_text[:, None]
        sequence = self.text_encoder(tokens, token_mask)
        mask = token_mask if self.cfg.padding == "mask" else jnp.ones_like(token_mask)
        return TextFeatures(sequence, sequence[:, -1], mask)

    def _project_clip(
        self, mask: Mask, text_seq: Array | None, z_txt: Array | None, keep_text: Array | None
    ) -> TextFeatures:
        """Projects and normalises CLIP's features of a caption."""
        if text_seq is None or z_txt is None:
            raise UserError("this decoder reads CLIP's features; pass text_seq and z_txt.")
        if keep_text is not None:
            raise UserError(
                "this decoder has no null caption (decoder.caption is 'clip_sequence'); instead "
                "of dropping a caption pass CLIP's features of the empty one."
            )
        if text_seq.shape[-1] != self.cfg.clip_text_width:
            raise UserError(
                f"text_seq has width {text_seq.shape[-1]}; decoder.clip_text_width is "
                f"{self.cfg.clip_text_width}. Use the CLIP of this decoder."
            )
        dtype = compute_dtype(self.cfg.unet.dtype)
        sequence = self.text_norm(self.text_in(text_seq.astype(dtype)))
        return TextFeatures(sequence, z_txt.astype(dtype), mask)

    def denoise(
        self,
        x_t: Image,
        t: Steps,
        *,
        z_img: Embedding,
        text: TextFeatures,
        keep_z: Bool[Array, " b"] | None = None,
        inpaint: Float[Array, " b h w 4"] | None = None,
        deterministic: bool = True,
    ) -> Float[Array, " b h w o"]:
        """Runs the U-Net with encoded captions."""
        cfg = self.cfg
        assert cfg.inpaints or inpaint is None, "this decoder has no channels for inpainting"
        z_img = self._dropped(z_img, keep_z).astype(compute_dtype(cfg.unet.dtype))
        emb = self.time(t) + self.text_to_emb(text.last) + self.z_to_emb(z_img)
        # channel-major, as in the public checkpoints: [b, d, n] and then transposed
        z_tokens = self.z_to_tokens(z_img).reshape(len(z_img), cfg.text_width, -1).swapaxes(1, 2)
        context = jnp.concatenate([z_tokens, text.sequence.astype(z_tokens.dtype)], axis=1)
        mask = None
        if cfg.padding == "mask":
            mask = jnp.concatenate([jnp.ones(z_tokens.shape[:2], bool), text.mask], axis=1)
        if cfg.z_map:
            x_t = jnp.concatenate([x_t, self._spatial(z_img, x_t.shape[1:3])], axis=-1)
        if cfg.inpaints:  # last, so that `Stage.grows` can add them to a trained stem
            empty = jnp.zeros((*x_t.shape[:3], INPAINT_CHANNELS), x_t.dtype)
            x_t = jnp.concatenate([x_t, empty if inpaint is None else inpaint], axis=-1)
        return self.unet(x_t, emb, context=context, context_mask=mask, deterministic=deterministic)

    def _dropped(self, z_img: Embedding, keep_z: Bool[Array, " b"] | None) -> Embedding:
        """Replaces dropped z_img by the null, for both pathways."""
        if not self.cfg.reads_z:
            keep_z = jnp.zeros(z_img.shape[0], bool)
        if keep_z is None:
            return z_img
        null = self.null_z if self.cfg.null_z == "learned" else jnp.zeros(self.cfg.z_dim)
        return jnp.where(keep_z[:, None], z_img, null[None].astype(z_img.dtype))

    def _spatial(self, z_img: Embedding, size: tuple[int, ...]) -> Float[Array, " b h w m"]:
        """Maps z_img to a coarse grid, repeated to the image's size."""
        if self.cfg.z_map_width:
            z_img = jax.nn.silu(self.z_to_hidden(z_img))
        grid = self.z_to_map(z_img).reshape(-1, MAP_SIDE, MAP_SIDE, self.cfg.z_map)
        rows, columns = (jnp.arange(side) * MAP_SIDE // side for side in size)
        return grid[:, rows][:, :, columns].astype(jnp.float32)


def inpaint_input(images: Image, mask: Float[Array, " b h w 1"]) -> Float[Array, " b h w 4"]:
    """Returns the input of inpainting: the image where the mask is 1, and the mask."""
    return jnp.concatenate([images * mask, mask], axis=-1)
