"""The `Stage` dataclass: the interface between the training loop and the stages."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int

from unclip_jax.core.batch import BatchSpec, with_float_images
from unclip_jax.core.types import Batch, HostBatch, Key, Metrics, Params, Scalar

# Opens a pass over the embeddings of a number of training examples at most, block by block, in the
# same order every time.
Rows = Callable[[int], Iterable[HostBatch]]


class FittedParams(NamedTuple):
    """Parameters that come from statistics of the data instead of gradients.

    Attributes:
        params: whole top-level groups of a stage's parameters, unboxed host arrays.
        note: one line about the fit for a person.
    """

    params: Params
    note: str


class PairwiseLoss(NamedTuple):
    """A loss of a whole batch that reads the examples through their embeddings alone.

    Replicas with parameters of their own each compute a share of it, and a batch that does not
    fit into memory is differentiated part by part (`training.embedding_cache`).

    Attributes:
        embed: (params, batch, key) -> a tree of arrays with one row per example, and scalars.
        share: axis names, outermost first -> embeddings of one replica -> its share of the loss and
            metrics, where the replicas lie along these named axes. The mean over replicas is the
            loss; () = there is one replica.
    """

    embed: Callable[[Params, Batch, Key], Any]
    share: Callable[[tuple[str, ...]], Callable[[Any], tuple[Scalar, Metrics]]]

    def loss(self, params: Params, batch: Batch, key: Key) -> tuple[Scalar, Metrics]:
        """Computes the loss of a whole batch."""
        return self.share(())(self.embed(params, batch, key))

    def replica_loss(self, axes: tuple[str, ...]) -> Callable[..., tuple[Scalar, Metrics]]:
        """Returns the loss as one replica computes it on its part of the batch."""
        return lambda params, batch, key: self.share(axes)(self.embed(params, batch, key))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One independently trained part of unCLIP as pure functions.

    Images of a batch are float32 in [-1, 1], or uint8 as loaders deliver them: `loss`, `evaluate`,
    `preview` and `pairwise` convert these first, so that a quarter of the bytes is transferred.

    Attributes:
        name: name in the registry.
        batch_spec: the fields of one training batch.
        init: key -> boxed parameters (leaves carry their logical axis names).
        loss: (params, batch, key) -> (scalar that is differentiated, metrics). With dropout and
            condition drops; all randomness comes from `key`.
        evaluate: (params, batch, key) -> metrics averaged over the batch, without dropout and
            condition drops; always holds "loss".
        preview: (params, batch, key) -> images in [-1, 1], the original left and the sample right;
            None for stages without images.
        splittable: True if the loss is a mean over examples, so that gradients of parts of a batch
            may be averaged; a contrastive loss is not.
        describe: JSON-ready facts that the manifest of an export records.
        pairwise: the loss in two steps where it is a function of the embeddings of the batch; None
            = it is not.
        fit: rows of the training data -> the groups of parameters that a fresh run starts with and
            that training leaves as they are; None if all parameters are learned.
        annealed: step -> fields of a training batch that depend on it, one number each, which every
            example gets; evaluation uses the values of the end. None = there are none.
        teacher: key -> boxed parameters of a fixed network, for their shapes; `loss` and `evaluate`
            then read such parameters as their fourth argument. None = there is none.
        grows: paths of kernels that may read more channels than in the parameters from which
            training starts, and the number of equal groups in their input; new weights are zero.
    """

    name: str
    batch_spec: BatchSpec
    init: Callable[[Key], Params]
    loss: Callable[..., tuple[Scalar, Metrics]]
    evaluate: Callable[..., Metrics]
    preview: Callable[[Params, Batch, Key], Float[Array, " b h w c"]] | None
    splittable: bool
    describe: dict[str, Any]
    pairwise: PairwiseLoss | None = None
    fit: Callable[[Rows], FittedParams] | None = None
    annealed: Callable[[Int[Array, ""]], dict[str, Scalar]] | None = None
    teacher: Callable[[Key], Params] | None = None
    grows: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name in ("loss", "evaluate", "preview"):
            if (function := getattr(self, name)) is not None:
                object.__setattr__(self, name, _of_floats(function))
        if self.pairwise is not None:
            pairwise = self.pairwise._replace(embed=_of_floats(self.pairwise.embed))
            object.__setattr__(self, "pairwise", pairwise)


def _of_floats(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function of a batch that converts its uint8 images first."""

    def call(params: Params, batch: Batch, key: Key, *teacher: Params) -> Any:
        return function(params, with_float_images(batch), key, *teacher)

    return call
