"""serving: the subcommands of `sample` for people who are not at this machine.

What lives here: requests and their limits (forms.py), the queue (desk.py), running a command for a
request (orders.py), the HTTP API (api.py), the page (page.py), and the sampler as one file that
runs without the model code (artefact.py reads it, bundling.py writes it). What doesn't: drawing,
which is in `commands` and `pipeline`. Start at forms.py, then orders.py.
"""

MAY_IMPORT: tuple[str, ...] = ("commands", "core", "data", "pipeline")
