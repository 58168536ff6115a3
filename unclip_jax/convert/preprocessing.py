"""Image preprocessing of CLIP according to public files: adopted, or rejected by name.

Our CLIP resizes the shorter side with Pillow's bicubic filter, crops the centre and standardises
every channel; only size, mean and deviation vary.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from unclip_jax.core.checks import UserError, short
from unclip_jax.models.clip_config import ClipConfig
from unclip_jax.weight_files import configs

BICUBIC = 3  # number of the filter in Pillow
CHANNELS = 3
OPEN_CLIP = ("size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color")


def of_transformers(cfg: ClipConfig, settings: Mapping[str, Any], *, where: str) -> ClipConfig:
    """Returns `cfg` with the statistics of a preprocessor_config.json.

    Raises:
        UserError: the file specifies another preprocessing.
    """
    if "image" not in cfg.towers:
        return cfg
    side = cfg.image_size
    for name in ("do_resize", "do_center_crop", "do_rescale"):
        _fixed(settings, name, (True,), where)
    _fixed(settings, "crop_size", (side, {"height": side, "width": side}), where)
    _fixed(settings, "size", (side, {"shortest_edge": side}), where)
    _fixed(settings, "resample", (BICUBIC,), where)
    factor = settings.get("rescale_factor") or 1 / 255
    if not _number(factor) or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        _reject("rescale_factor", factor, "1/255", where)
    _fixed(settings, "do_normalize", (True, False), where)
    if settings.get("do_normalize", True) is False:
        zero, one = (0.0,) * CHANNELS, (1.0,) * CHANNELS
        return dataclasses.replace(cfg, image_mean=zero, image_std=one)
    return _with_statistics(cfg, settings, ("image_mean", "image_std"), where)


def of_open_clip(cfg: ClipConfig, settings: Mapping[str, Any], *, where: str) -> ClipConfig:
    """Returns `cfg` with the statistics of an open_clip_config.json's `preprocess_cfg`.

    Raises:
        UserError: the file specifies another preprocessing.
    """
    configs.check_known(settings, OPEN_CLIP, where=where)
    side = cfg.image_size
    _fixed(settings, "resize_mode", ("shortest",), where)
    _fixed(settings, "interpolation", ("bicubic", "random"), where)  # random only in training
    _fixed(settings, "mode", ("RGB",), where)
    _fixed(settings, "size", (side, [side, side]), where)
    return _with_statistics(cfg, settings, ("mean", "std"), where)


def _with_statistics(
    cfg: ClipConfig, settings: Mapping[str, Any], names: tuple[str, str], where: str
) -> ClipConfig:
    """Returns `cfg` with mean and deviation of pixels, if the settings have them.

    Most public models have OpenAI's numbers, which are the default; LAION's L/14 has 0.5.
    """
    values = {}
    for field, name in zip(("image_mean", "image_std"), names, strict=True):
        value = settings.get(name)
        if value is None:
            continue
        numbers = value if isinstance(value, list) else []
        fits = len(numbers) == CHANNELS and all(_number(x) and abs(x) < 1e6 for x in numbers)
        if not fits or (field == "image_std" and min(numbers) <= 0):
            _reject(name, value, "three numbers, deviations above 0", where)
        values[field] = tuple(map(float, numbers))
    return dataclasses.replace(cfg, **values)


def _fixed(settings: Mapping[str, Any], name: str, allowed: tuple[Any, ...], where: str) -> None:
    """Rejects a setting whose value is not among `allowed`; True does not equal 1."""
    value = settings.get(name)
    same = (type(value) is type(choice) and value == choice for choice in allowed)
    if value is not None and not any(same):
        _reject(name, value, " or ".join(map(repr, allowed)), where)


def _reject(name: str, value: Any, expected: str, where: str) -> None:
    raise UserError(
        f"{where} has {name} {short(value)}, with which this CLIP cannot prepare images; expected "
        f"{expected}."
    )


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
