"""The lengths of the chains that a request asks for, which bound its time."""

from unclip_jax.diffusion import respace
from unclip_jax.engine.request_base import Request
from unclip_jax.inference.cascade import Cascade

ROLES = {"steps": "decoder", "prior_steps": "prior", "upsampler_steps": "upsampler"}


def lengths(request: Request, cascade: Cascade) -> dict[str, int]:
    """Returns the number of steps of each grid that a request names, by field.

    Raises:
        UserError: a grid has no meaning on the chain of its stage.
    """
    counts: dict[str, int] = {}
    for name, role in ROLES.items():
        steps: str | None = getattr(request, name, None)
        if steps is None:
            continue
        for stage in cascade.of_role(role):
            diffusion = getattr(stage.config, "diffusion", None)
            if diffusion is not None:
                chain = respace.strided(diffusion.chain(), steps=steps)
                counts[name] = max(counts.get(name, 0), chain.num_timesteps)
    return counts
