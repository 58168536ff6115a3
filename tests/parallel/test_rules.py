import pytest
from jax.sharding import PartitionSpec as P

from unclip_jax.core.checks import UserError
from unclip_jax.parallel.axes import NAMES
from unclip_jax.parallel.mesh import AXES, MeshConfig, make_mesh
from unclip_jax.parallel.rules import TABLES, spec, table

# Written by hand from what each layout means: kernels by (names, shape), one spec per table.
GOLDEN = {
    "attention q": (("embed", "heads"), (64, 64), P(), P("fsdp", None), P("fsdp", "tensor")),
    "attention out": (("heads", "embed"), (64, 64), P(), P(None, "fsdp"), P("tensor", "fsdp")),
    "mlp in": (("embed", "mlp"), (64, 256), P(), P("fsdp", None), P("fsdp", "tensor")),
    "mlp out": (("mlp", "embed"), (256, 64), P(), P(None, "fsdp"), P("tensor", "fsdp")),
    "scanned mlp": (
        ("layers", "embed", "mlp"),
        (3, 64, 256),
        P(),
        P(None, "fsdp", None),
        P(None, "fsdp", "tensor"),
    ),
    "tokens": (("vocab", "embed"), (512, 64), P(), P(None, "fsdp"), P("tensor", "fsdp")),
    "positions": (("position", "embed"), (16, 64), P(), P(None, "fsdp"), P(None, "fsdp")),
    "convolution": (
        (None, None, "conv_in", "conv_out"),
        (3, 3, 32, 64),
        P(),
        P(None, None, None, "fsdp"),
        P(None, None, "tensor", "fsdp"),
    ),
    "rgb stem": (  # 3 channels cannot be halved
        (None, None, "conv_in", "conv_out"),
        (3, 3, 3, 64),
        P(),
        P(None, None, None, "fsdp"),
        P(None, None, None, "fsdp"),
    ),
    "image head": (
        (None, None, "conv_in", "out"),
        (3, 3, 64, 6),
        P(),
        P(),
        P(None, None, "tensor", None),
    ),
    "time map": (("time", "conv_out"), (64, 128), P(), P(None, "fsdp"), P(None, "fsdp")),
    "bias": (("mlp",), (256,), P(), P(), P()),
    "scanned bias": (("layers", "embed"), (3, 64), P(), P(), P()),
    "counter": ((), (), P(), P(), P()),
}


def same(a: P, b: P) -> bool:
    """Equal but for trailing Nones."""
    length = max(len(a), len(b))
    return [*a, *[None] * (length - len(a))] == [*b, *[None] * (length - len(b))]


@pytest.mark.parametrize("rules", ["dp", "fsdp", "fsdp_tp"])
@pytest.mark.parametrize("what", GOLDEN)
def test_golden_specs(rules: str, what: str):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    names, shape, *expected = GOLDEN[what]
    want = dict(zip(("dp", "fsdp", "fsdp_tp"), expected, strict=True))[rules]
    assert same(spec(names, shape, table=table(rules), mesh=mesh), want)


@pytest.mark.parametrize("rules", TABLES)
def test_every_table_maps_exactly_the_logical_axis_names(rules: str):
    assert set(TABLES[rules]) == set(NAMES)
    assert set(TABLES[rules].values()) <= {None, *AXES[1:]}


def test_an_axis_of_one_device_splits_nothing():
    mesh = make_mesh(MeshConfig())
    assert same(spec(("embed", "mlp"), (64, 64), table=table("fsdp_tp"), mesh=mesh), P())


def test_two_axes_on_one_mesh_axis_are_rejected():
    mesh = make_mesh(MeshConfig(fsdp=2))
    with pytest.raises(UserError, match=r"net/up with axes .* split twice over mesh axis 'fsdp'"):
        spec(("embed", "conv_out"), (8, 8), table=table("fsdp"), mesh=mesh, path="net/up")


def test_names_that_do_not_fit_are_rejected():
    mesh = make_mesh(MeshConfig(fsdp=2))
    with pytest.raises(UserError, match=r"up has unknown logical axis 'embde'\. Did you mean"):
        spec(("embde", "mlp"), (8, 8), table=table("fsdp"), mesh=mesh, path="up")
    with pytest.raises(UserError, match=r"up has shape \(8, 8\) but logical axes .* every axis"):
        spec(("embed",), (8, 8), table=table("fsdp"), mesh=mesh, path="up")


def test_an_unknown_table_is_rejected():
    with pytest.raises(UserError, match=r"unknown sharding rules 'fdsp'. Did you mean 'fsdp'"):
        table("fdsp")
