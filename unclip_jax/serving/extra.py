"""The libraries of the extra `demo`, which every server needs."""

import importlib.util

from unclip_jax.core.checks import UserError

LIBRARIES = ("starlette", "uvicorn")


def check_installed() -> None:
    """Checks that the extra is installed.

    Raises:
        UserError: it is not; the message says how to install it.
    """
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"the page needs {' and '.join(missing)}, not installed here; run `pip install "
            "'unclip_jax[demo]'`, in a checkout `pip install -e '.[demo]'`."
        )
