"""Conversion of records to examples, in a fixed and a random part.

The fixed part (decode, resize, tokenise) depends on the record alone and may be cached in memory.
The random part (crop, flip, corruption) draws from a generator that is derived from the example's
position in the stream of the whole run.
"""

import dataclasses
import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from unclip_jax.core.checks import UserError, divisible, in_range, one_of, positive, suggest
from unclip_jax.core.types import HostBatch
from unclip_jax.data import image_codec
from unclip_jax.data.dataset import Source, without_image
from unclip_jax.data.degrade import DegradeConfig, degrade
from unclip_jax.data.records import Record
from unclip_jax.tokenization.bpe_dropout import BpeDropout
from unclip_jax.tokenization.caption_tokenizer import Tokenizer

TEXT = ("tokens", "token_mask")
EMBEDDINGS = ("z_img", "z_txt")
CODES = ("codes",)  # of images, read from disk
STRINGS = ("key", "caption", "scene")  # not moved to devices
FIELDS = ("image", "low_res", *TEXT, *EMBEDDINGS, *CODES, *STRINGS)

CHOICES = "captions"  # number of captions of an example that `RandomPart` chooses from

Example = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class ExampleConfig:
    """Fields of an example and preprocessing of its image.

    Attributes:
        fields: batch fields: image, low_res, tokens, token_mask, z_img, z_txt, codes, and key,
            caption, scene (arrays of strings, for the host).
        image_size: side to which images are resized and cropped.
        crop: "center", or "random" along the longer side.
        flip: mirrors half of the images; wrong if captions mention left and right.
        patch: side of a random window of the `image_size` image, on which upsamplers train; None =
            the whole image.
        length: number of token positions.
        degrade: degradation from the (cropped) image to low_res; only for that field.
        empty_captions: share of examples whose caption is replaced by the empty one.
        captions: which of several captions of an image: "first" or "any" (drawn anew every epoch).
        bpe_dropout: probability of skipping a merge of the tokenizer, drawn anew every epoch.
        specials: number of tokens of an empty caption: 2, start and end, or 1, the end alone (T5).
        fast_decode: decodes JPEGs at a fraction of their size (`image_codec.decode`), which
            changes pixels slightly.
        arrays: names of fields that are arrays in the records (`pairs.matching`) instead of images.
    """

    fields: tuple[str, ...]
    image_size: int = 64
    crop: str = "center"
    flip: bool = False
    patch: int | None = None
    length: int = 77
    degrade: DegradeConfig | None = None
    empty_captions: float = 0.0
    captions: str = "first"
    bpe_dropout: float = 0.0
    specials: int = 2
    fast_decode: bool = False
    arrays: tuple[str, ...] = ()

    def __post_init__(self):
        one_of("captions", self.captions, ("first", "any"))
        in_range("empty_captions", self.empty_captions, 0.0, 1.0)
        in_range("bpe_dropout", self.bpe_dropout, 0.0, 1.0)
        for field in self.fields:
            one_of("batch field", field, (*FIELDS, *self.arrays))
        if not self.fields:
            raise UserError(f"no batch fields are requested.{suggest('', FIELDS)}")
        one_of("crop", self.crop, ("center", "random"))
        positive("image_size", self.image_size)
        in_range("patch", self.side, 1, self.image_size)
        if "low_res" in self.fields:
            if self.degrade is None:
                raise UserError("field 'low_res' needs a DegradeConfig; set `degrade`.")
            why = "low_res must be exactly that many times smaller."
            divisible("image side", self.side, self.degrade.factor, why)

    @property
    def side(self) -> int:
        """Side of the images in a batch."""
        return self.image_size if self.patch is None else self.patch

    @property
    def decodes_images(self) -> bool:
        """True if images have to be decoded."""
        return "image" in self.fields or "low_res" in self.fields

    @property
    def random(self) -> bool:
        """True if examples have a random part."""
        rarely = self.empty_captions > 0 or self.bpe_dropout > 0 or self.captions == "any"
        return self.decodes_images or rarely


class FixedExamples:
    """The fixed part of every example, cached within a memory limit."""

    def __init__(
        self,
        source: Source,
        *,
        config: ExampleConfig,
        tokenizer: Tokenizer | None = None,
        cache_bytes: int = 0,
    ):
        """Wraps `source`; at most `cache_bytes` of examples are cached.

        Raises:
            UserError: the source is empty or lacks a field, or there is no tokenizer.
        """
        self._source, self._config, self._tokenizer = source, config, tokenizer
        self._limit, self._used = cache_bytes, 0
        self._cache: dict[int, Example] = {}
        self._lock = threading.Lock()
        _check(source, config, tokenizer)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_cache", "_lock", "_used")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _cache={}, _lock=threading.Lock(), _used=0)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        if index in self._cache:
            return self._cache[index]
        source = self._source
        whole = self._config.decodes_images or self._config.arrays
        example = self._make(source[index] if whole else without_image(source, index))
        if not self._limit:
            return example
        size = sum(_bytes(value) for value in example.values())
        with self._lock:
            if index not in self._cache and self._used + size <= self._limit:
                self._cache[index] = example
                self._used += size
        return example

    def _make(self, record: Record) -> Example:
        """Returns the fixed part; caption fields are stacked if one of several is chosen later."""
        config = self._config
        if config.arrays:
            return {name: record[name] for name in config.fields}
        text = ("caption",) if config.bpe_dropout else ()  # `RandomPart` segments it
        names = [f for f in (*EMBEDDINGS, *CODES, *STRINGS) if f in (*config.fields, *text)]
        example: Example = {name: record[name] for name in names}
        if config.decodes_images:
            example["image"] = _image(record, config)
        captions = _captions(record, config)
        fields: Example = {}
        if "z_txt" in example:
            fields["z_txt"] = np.atleast_2d(example["z_txt"])[: len(captions)]
        if "caption" in example:
            fields["caption"] = captions
        if self._tokenizer is not None and set(TEXT) & set(config.fields):
            tokens, mask = self._tokenizer.encode(captions, length=config.length)
            fields |= {"tokens": tokens, "token_mask": mask}
        if len(captions) == 1:
            return example | {name: values[0] for name, values in fields.items()}
        return example | fields | {CHOICES: len(captions)}


@dataclasses.dataclass(frozen=True)
class RandomPart:
    """The random part of an example, a pure function of the fixed part and a generator.

    Attributes:
        config: settings of the examples.
        segmentation: segmentation of captions, if `config.bpe_dropout` is not 0.
    """

    config: ExampleConfig
    segmentation: BpeDropout | None = None

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Crops, flips and corrupts the image, which stays uint8; chooses or drops the caption."""
        config = self.config
        if CHOICES in example:
            example = _with_caption(example, int(rng.integers(example[CHOICES])))
        if self.segmentation is not None:
            text, length = str(example["caption"]), config.length
            tokens, mask = self.segmentation.encode(text, length=length, generator=rng)
            example = {**example, "tokens": tokens, "token_mask": mask}
        if config.empty_captions and rng.random() < config.empty_captions:
            example = without_caption(example, specials=config.specials)
        if not config.decodes_images:
            return example
        image = example["image"]
        if config.crop == "random":
            image = image_codec.random_crop(image, config.image_size, rng=rng)
        if config.flip and rng.random() < 0.5:
            image = image_codec.flip(image)
        if config.patch is not None:
            image = image_codec.random_crop(image, config.patch, rng=rng)
        example = {**example, "image": image}
        if "low_res" in config.fields and config.degrade is not None:
            whole = image_codec.to_float(image)
            example["low_res"] = degrade(whole, config=config.degrade, rng=rng)
        return example


def _captions(record: Record, config: ExampleConfig) -> list[str]:
    """Returns the captions to choose from: only the first if z_txt belongs to that one."""
    if config.captions == "first" or ("z_txt" in config.fields and record["z_txt"].ndim == 1):
        return [record["caption"]]
    return record.get("captions", [record["caption"]])


def _bytes(value: Any) -> int:
    """Returns the memory of a value of an example in bytes."""
    return value.nbytes if isinstance(value, np.ndarray) else sys.getsizeof(value)


def _with_caption(example: Example, index: int) -> Example:
    """Returns the example with one of its captions."""
    single = {name: example[name][index] for name in ("caption", "z_txt", *TEXT) if name in example}
    others = {name: value for name, value in example.items() if name != CHOICES}
    return {**others, **single}


def without_caption(example: Example, *, specials: int = 2) -> Example:
    """Returns the example with the empty caption: start and end token, or the end token alone."""
    tokens, mask = np.zeros_like(example["tokens"]), np.zeros_like(example["token_mask"])
    end = int(example["token_mask"].sum()) - 1
    tokens[:specials], mask[:specials] = example["tokens"][[0, end]][-specials:], True
    return {**example, "tokens": tokens, "token_mask": mask}


def collate(examples: Sequence[Example], *, fields: tuple[str, ...]) -> HostBatch:
    """Stacks examples field by field; images remain uint8 until they are on a device."""
    batch = {}
    for field in fields:
        values = [example[field] for example in examples]
        batch[field] = np.array(values) if field in STRINGS else np.stack(values)
    return batch


def _image(record: Record, config: ExampleConfig) -> image_codec.Pixels:
    """Decodes and resizes an image, and crops it unless the crop is random."""
    try:
        reduced = config.image_size if config.fast_decode else 0
        pixels = image_codec.decode(record["image"], limits=image_codec.ANY_SIZE, reduced=reduced)
    except image_codec.BadImage as error:
        raise UserError(
            f"the image of record {record['key']!r} cannot be used: {error}. Prepare the data with "
            "`python -m unclip_jax.prepare`, which leaves such images out."
        ) from error
    if "low_res" in config.fields:
        check_side(min(pixels.shape[:2]), config.image_size, f"record {record['key']!r}")
    pixels = image_codec.resize_short(pixels, config.image_size)
    return pixels if config.crop == "random" else image_codec.center_crop(pixels, config.image_size)


def check_side(side: int, needed: int, what: str) -> None:
    """Rejects an image that would have to be enlarged to be the target of an upsampler.

    Raises:
        UserError: its shorter side is below `needed`.
    """
    if side < needed:
        raise UserError(
            f"the image of {what} has a shorter side of {side} pixels; the upsampler trains on "
            f"images of {needed} and would learn blur from enlarged ones. Prepare the data with "
            f"--min-side={needed}, which skips and counts smaller images."
        )


def _check(source: Source, config: ExampleConfig, tokenizer: Tokenizer | None) -> None:
    if len(source) == 0:
        raise UserError("the data set is empty; prepare it with more inputs.")
    if tokenizer is None and set(TEXT) & set(config.fields):
        raise UserError(
            "captions are requested, but there is no tokenizer; give the one beside the data set, "
            "which `prepare` writes except with --tokenizer=none."
        )
    if "low_res" in config.fields and (smallest := getattr(source, "min_side", 0)):
        check_side(smallest, config.image_size, "the smallest record")
    record = source[0]
    needed = {f for f in config.fields if f in (*EMBEDDINGS, *CODES, *STRINGS, *config.arrays)}
    needed |= {"image"} if config.decodes_images else set()
    missing = sorted(needed - record.keys())
    if missing:
        raise UserError(
            f"records of this data set have {sorted(record)}, but {missing} are requested; "
            "embeddings come from `python -m unclip_jax.embed`, images from a prepared folder."
        )
