"""Trains priors between two embedding spaces on synthetic pairs whose posterior is known.

    python -m benchmarks.embedding_prior linear
    python -m benchmarks.embedding_prior clusters --pairs=5000 --out=clusters.json

Hidden u determines x = P v + r e and y = M u + s e', where v are the first coordinates of u, P and
M have orthonormal columns and e, e' are standard normal. In "linear" v is all of u, which is
normal, so y given x is normal and ridge regression is the best point estimate. In "clusters" u is a
mixture of narrow clusters of which v is a small part, so y given x has several modes and its mean
is not a linear function of x. In both tasks the distribution of y given x is known exactly, and
therefore the best mean cosine.
"""

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from unclip_jax.cli import entry
from unclip_jax.cli.parser import Parser
from unclip_jax.core.checks import one_of

X_DIM, Y_DIM = 512, 768
TASKS = ("linear", "clusters")
HELD_OUT = 600


class Task(NamedTuple):
    """A generating process.

    Attributes:
        to_x: P, transposed, [visible x].
        to_y: M, transposed, [hidden y].
        centres: centres of the clusters, [clusters hidden].
        spread: standard deviation of u around its centre.
        noise_x: r.
        noise_y: s.
    """

    to_x: np.ndarray
    to_y: np.ndarray
    centres: np.ndarray
    spread: float
    noise_x: float
    noise_y: float


def make_task(name: str, *, x_dim: int = X_DIM, y_dim: int = Y_DIM, hidden: int = 64) -> Task:
    """Returns the generating process of a task.

    Raises:
        UserError: the name is unknown.
    """
    one_of("task", name, TASKS)
    generator = np.random.default_rng(0)
    visible = hidden if name == "linear" else 3
    to_x = _orthonormal(generator, visible, x_dim)
    to_y = _orthonormal(generator, hidden, y_dim)
    if name == "linear":
        return Task(to_x, to_y, np.zeros((1, hidden)), 1.0, 0.5, 0.2)
    return Task(to_x, to_y, generator.normal(size=(100, hidden)), 0.2, 0.1, 0.1)


def _orthonormal(generator: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    basis, _ = np.linalg.qr(generator.normal(size=(columns, rows)))
    return basis.T


def draw(task: Task, count: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns `count` pairs (x, y) in float32."""
    generator = np.random.default_rng(seed)
    chosen = generator.integers(len(task.centres), size=count)
    u = task.centres[chosen] + task.spread * generator.normal(size=(count, len(task.to_y)))
    x = u[:, : len(task.to_x)] @ task.to_x + task.noise_x * generator.normal(
        size=(count, task.to_x.shape[1])
    )
    y = u @ task.to_y + task.noise_y * generator.normal(size=(count, task.to_y.shape[1]))
    return x.astype(np.float32), y.astype(np.float32)


def posterior(task: Task, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the posterior of u given x, a mixture of Gaussians.

    P has orthonormal columns, so P' x is sufficient: normal around v with standard deviation r.

    Returns:
        Weights of the clusters [n c], their means [n c hidden], and the deviation [hidden].
    """
    visible, (spread, noise) = len(task.to_x), (task.spread, task.noise_x)
    gap = (x @ task.to_x.T)[:, None] - task.centres[None, :, :visible]
    logits = -0.5 * (gap**2).sum(axis=-1) / (spread**2 + noise**2)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    gain = spread**2 / (spread**2 + noise**2)
    means = np.repeat(task.centres[None], len(x), axis=0)
    means[:, :, :visible] += gain * gap
    deviation = np.full(len(task.to_y), spread)
    deviation[:visible] = np.sqrt(gain) * noise
    return weights, means, deviation


def posterior_mean(task: Task, x: np.ndarray) -> np.ndarray:
    """Returns the mean of y given x."""
    weights, means, _ = posterior(task, x)
    return np.einsum("nc,nch->nh", weights, means) @ task.to_y


def posterior_samples(task: Task, x: np.ndarray, num: int, *, seed: int) -> np.ndarray:
    """Returns `num` samples of y given every x, [n num y]."""
    generator = np.random.default_rng(seed)
    weights, means, deviation = posterior(task, x)
    edges = weights.cumsum(axis=1)[:, None]
    chosen = (generator.random((len(x), num, 1)) > edges[:, :, :-1]).sum(axis=-1)
    u = np.take_along_axis(means, chosen[..., None], axis=1)
    u = u + deviation * generator.normal(size=u.shape)
    noise = task.noise_y * generator.normal(size=(*u.shape[:2], task.to_y.shape[1]))
    return (u @ task.to_y + noise).astype(np.float32)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Trains on a task and returns times and figures."""
    import unclip_jax
    from unclip_jax.evaluation import pair_report

    task = make_task(args.task)
    x, y = draw(task, args.pairs, seed=1)
    started = time.perf_counter()
    settings = dict(item.split("=", 1) for item in args.set)
    settings = {"model.scaling": "standardised", "data.eval_share": 0.02, **settings}
    prior = unclip_jax.fit_prior(x, y, settings=settings, workdir=args.workdir)
    seconds = time.perf_counter() - started
    new_x, new_y = draw(task, HELD_OUT, seed=2)
    best = posterior_mean(task, new_x)
    samples = prior.sample(new_x, num=args.num)
    exact = posterior_samples(task, new_x, args.num, seed=3)
    report = pair_report.score_priors(
        new_y, {"prior": samples, "best": exact, "ridge": prior.linear(new_x)[:, None]}
    )
    return {
        "task": args.task,
        "pairs": args.pairs,
        "seconds": seconds,
        "best_cosine": pair_report.mean_cosine(best, new_y).value,
        "report": report.plain(),
    }


def main(argv: Sequence[str]) -> None:
    """Measures and prints."""
    parser = Parser(
        "embedding_prior",
        prog="python -m benchmarks.embedding_prior",
        description="Train on pairs of known posterior.",
    )
    parser.add_argument("task", choices=TASKS, help="generating process")
    parser.add_argument("--pairs", type=int, default=20_000, help="training pairs")
    parser.add_argument("--num", type=int, default=16, help="samples per held-out pair")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE of the experiment")
    parser.add_argument("--workdir", type=pathlib.Path, help="folder of the run")
    parser.add_argument("--out", type=pathlib.Path, help="JSON to write")
    args = parser.parse_args(argv)
    text = json.dumps(measure(args), indent=2) + "\n"
    if args.out:
        args.out.write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
