"""Trains one stage.

    python -m unclip_jax.train --config=prior:shapes --workdir=runs/shapes/prior

Any value can be overridden: --config.optim.learning_rate=3e-4. The same command continues an
interrupted run, bit for bit. When training ends, the averaged parameters are exported to
WORKDIR/export with a manifest; --export-only exports the newest checkpoint of an unfinished run.
A prior that samples with the analytic variance gets its table there too.
On several machines every process runs this command; see `unclip_jax.parallel.cluster`.
"""

import logging
import sys
from collections.abc import Sequence

from unclip_jax.cli import compilation_cache, entry, flags, process_flags
from unclip_jax.cli.experiment_flags import ExperimentParser
from unclip_jax.core.storage import location

log = logging.getLogger(__name__)


def parser() -> ExperimentParser:
    """Returns the parser of the command line."""
    parser = ExperimentParser(
        "train", description="Train one stage; the same command continues an interrupted run."
    )
    parser.add_argument(
        "--workdir", type=location, required=True, help="folder of this run, or its gs:// URL"
    )
    parser.add_argument(
        "--compilation-cache",
        help="folder or URL of compiled programs; empty = none; default: "
        "JAX_COMPILATION_CACHE_DIR, or compilation_cache beside the workdir",
    )
    parser.add_argument(
        "--export-only", action="store_true", help="export the newest checkpoint, do not train"
    )
    flags.add_skip_digests(parser)
    process_flags.add(parser)
    return parser


def main(argv: Sequence[str]) -> None:
    """Trains the stage and exports it."""
    args, overrides = parser().parse(argv)
    from unclip_jax.core.config import as_dict
    from unclip_jax.experiment import loading, training_run
    from unclip_jax.parallel import cluster, multihost

    _log_to_stderr()
    folder = compilation_cache.use(args.compilation_cache, workdir=args.workdir)
    if folder:
        log.info("compiled programs are kept in %s", folder)
    process_flags.start(args)
    experiment = loading.read(args.config, overrides=overrides)
    place = {"workdir": str(args.workdir), "export_only": args.export_only}
    multihost.check_same({"config": as_dict(experiment), **place, **cluster.facts()})
    training_run.train_and_export(experiment, args.workdir, export_only=args.export_only)


def _log_to_stderr() -> None:
    """Shows the package's log on stderr, and of others only errors."""
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("unclip_jax").setLevel(logging.INFO)


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
