"""The subcommands of `python -m unclip_jax.sample` by name.

To add one: a module with `DESCRIPTION`, `parse(argv)` and `run(args)`, and a line here.
"""

import sys
from types import ModuleType

from unclip_jax.cli.edits import (
    blend,
    inpaint,
    interpolate,
    probe_pca,
    reconstruct,
    text_diff,
    upscale,
    variations,
)

COMMANDS: dict[str, ModuleType] = {
    "reconstruct": reconstruct,
    "variations": variations,
    "interpolate": interpolate,
    "text-diff": text_diff,
    "blend": blend,
    "probe-pca": probe_pca,
    "upscale": upscale,
    "inpaint": inpaint,
}


def run(name: str, argv: list[str]) -> None:
    """Run one subcommand and say what it wrote.

    Raises:
        UserError: a mistake in its arguments, pictures or models.
    """
    args = COMMANDS[name].parse(argv)
    args.command, args.argv = name, argv
    sys.stdout.write(COMMANDS[name].run(args))


def overview() -> str:
    """One line per subcommand, for the help text."""
    return "\n".join(f"  {name:12} {module.DESCRIPTION}" for name, module in COMMANDS.items())
