"""Costs read off compiled programs equal those that the programs were written to have."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from tests.training import toy
from unclip_jax.core import batch as batches
from unclip_jax.parallel.mesh import MeshConfig, make_mesh
from unclip_jax.planning import communication, flops, hlo, work
from unclip_jax.training.optimizer import OptimConfig
from unclip_jax.training.train_program import make_train_program

MESH = make_mesh(MeshConfig(data=2, fsdp=4))
TURNS = 5


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def compile_module(function, *args) -> hlo.Module:
    return hlo.parse(jax.jit(function).lower(*args).compile().as_text())


def manual(body, *, inputs, outputs):
    """`body` on every device by itself, its collectives written out."""
    return jax.shard_map(body, mesh=MESH, in_specs=inputs, out_specs=outputs, check_vma=False)


def turns(body):
    """`body` several times in a loop."""
    return lambda x: lax.scan(lambda x, _: (body(x), None), x, None, length=TURNS)[0]


ITEM = 4  # bytes of a float32; local arrays below are [8, 16]
LOCAL = 8 * 16 * ITEM


def gather(x):
    return lax.all_gather(x, "fsdp", tiled=True)[:8] + 1.0


def reduce_scatter(x):
    return jnp.tile(lax.psum_scatter(x, "fsdp", scatter_dimension=0, tiled=True), (4, 1))


def exchange(x):
    return lax.all_to_all(x, "data", split_axis=0, concat_axis=0, tiled=True) + 1.0


def permute(x):
    return lax.ppermute(x, "fsdp", [(i, (i + 1) % 4) for i in range(4)])


CASES = {
    "all-gather": (gather, 4, 3 * LOCAL),
    "reduce-scatter": (reduce_scatter, 4, LOCAL * 3 / 4),
    "all-reduce": (lambda x: lax.psum(x, ("data", "fsdp")) * 0.1, 8, 2 * LOCAL * 7 / 8),
    "all-to-all": (exchange, 2, LOCAL / 2),
    "collective-permute": (permute, 2, LOCAL),
}


@pytest.mark.parametrize("kind", CASES)
def test_every_collective_is_found_with_its_bytes_once_per_turn(kind: str):
    body, group, arrived = CASES[kind]
    spec = P(("data", "fsdp"))
    program = manual(turns(body), inputs=spec, outputs=spec)
    module = compile_module(program, shape(64, 16))
    (result,) = communication.collectives(module, devices=8)
    assert (result.kind, result.group, result.times) == (kind, group, TURNS)
    assert result.arrived == arrived
    assert communication.bytes_by_kind([result]) == {kind: TURNS * arrived}
    assert module.endless == ()


def test_collectives_outside_and_inside_nested_loops_add_up():
    def body(x):
        x = lax.psum(x, "data")
        x = turns(turns(lambda x: lax.psum(x, "fsdp") * 0.2))(x)
        return lax.ppermute(x, "data", [(0, 1), (1, 0)])

    spec = P(("data", "fsdp"))
    module = compile_module(manual(body, inputs=spec, outputs=spec), shape(64, 16))
    result = {(c.kind, c.group): c.times for c in communication.collectives(module, devices=8)}
    assert result == {
        ("all-reduce", 2): 1,
        ("all-reduce", 4): TURNS**2,
        ("collective-permute", 2): 1,
    }


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4),
        ("replica_groups=[2,4]<=[8]", 4),
        ("replica_groups=[16,16]<=[16,16]T(1,0), dimensions={0}", 16),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=1,'axis_2'=4] {'axis_2'}, use", 4),
        ("replica_groups=mesh['a'=1,'b'=4,'c'=2], device_ids=([2,4]T(1,0)) {'b'}, d={0}", 4),
        ("replica_groups=mesh['a'=4,'b'=8] {'a','b':(2)4}", 16),
        ("replica_groups={}", 8),
    ],
)
def test_groups_in_every_form(text: str, size: int):
    assert communication.group_size(text, devices=8) == size


TPU = """
HloModule step

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %s = f32[]{:T(128)} add(%a, %b)
}

%all-reduce-scatter (input: bf16[64,32]) -> bf16[16,32] {
  %input = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(0)
  %sum = bf16[64,32]{1,0} all-reduce(%input), channel_id=7, replica_groups=[2,4]<=[8], to_apply=%add
  %i = s32[]{:T(128)} constant(0)
  ROOT %o = bf16[16,32]{1,0:S(1)} dynamic-slice(%sum, %i, %i), sizes={16,32}
}

%start (p: bf16[16,32]) -> bf16[64,32] {
  %p = bf16[16,32]{1,0} parameter(0)
  %g.1 = bf16[64,32]{1,0} all-gather(%p), channel_id=9, replica_groups=[2,4]<=[8]
  ROOT %c = bf16[64,32]{1,0} custom-call(%g.1), custom_call_target="AsyncCollectiveStart"
}

%done (p.1: bf16[16,32]) -> bf16[64,32] {
  %p.1 = bf16[16,32]{1,0} parameter(0)
  ROOT %g.2 = bf16[64,32]{1,0} all-gather(%p.1), channel_id=9, replica_groups=[2,4]<=[8]
}

%body (t: (s32[], bf16[64,32])) -> (s32[], bf16[64,32]) {
  %t = (s32[]{:T(128)}, bf16[64,32]{1,0:T(8,128)(2,1)}) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%t), index=0
  %x = bf16[64,32]{1,0:T(8,128)(2,1)} get-tuple-element(%t), index=1
  %r = bf16[16,32]{1,0:S(1)} fusion(%x), kind=kCustom, calls=%all-reduce-scatter
  %begin = bf16[64,32]{1,0} fusion(%r), kind=kCustom, calls=%start
  %end = bf16[64,32]{1,0} fusion(%r), calls=%done, config={"estimated_cycles":"100"}
  ROOT %out = (s32[]{:T(128)}, bf16[64,32]{1,0:T(8,128)(2,1)}) tuple(%n, %end)
}

%condition (t.1: (s32[], bf16[64,32])) -> pred[] {
  %t.1 = (s32[]{:T(128)}, bf16[64,32]{1,0:T(8,128)(2,1)}) parameter(0)
  %n.1 = s32[]{:T(128)} get-tuple-element(%t.1), index=0
  %limit = s32[]{:T(128)} constant(24)
  ROOT %less = pred[]{:T(512)} compare(%n.1, %limit), direction=LT
}

ENTRY %main (p0: (s32[], bf16[64,32])) -> (s32[], bf16[64,32]) {
  %p0 = (s32[]{:T(128)}, bf16[64,32]{1,0:T(8,128)(2,1)}) parameter(0)
  ROOT %w = (s32[], bf16[64,32]{1,0}) while(%p0), condition=%condition, body=%body
}
"""


def test_tpu_programs_hide_reduce_scatters_repeat_gathers_and_drop_trip_counts():
    """Written by hand after the forms that libtpu prints."""
    module = hlo.parse(TPU)
    result = communication.collectives(module, devices=8)
    assert {(c.kind, c.group, c.times) for c in result} == {
        ("reduce-scatter", 4, 24),
        ("all-gather", 4, 24),
    }
    assert communication.bytes_by_kind(result) == {
        "all-gather": 24 * 3 * 16 * 32 * 2,
        "reduce-scatter": 24 * 64 * 32 * 2 * 3 / 4,
    }
    assert work.measure(module).cycles == 2400


def test_flops_of_one_device_through_loops():
    def loss(x, w):
        return jnp.sum(lax.scan(lambda x, w: (jnp.sin(x @ w), None), x, w)[0])

    args = shape(8, 16), shape(11, 16, 16)
    cost = work.measure(compile_module(jax.grad(loss, argnums=1), *args))
    assert cost.flops == 3 * 11 * 2 * 8 * 16 * 16
    assert cost.hidden == ()


@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_count_as_in_the_traced_function(stride: int):
    def loss(x, w):
        numbers = ("NHWC", "HWIO", "NHWC")
        out = lax.conv_general_dilated(x, w, (stride,) * 2, "SAME", dimension_numbers=numbers)
        return jnp.sum(out**2)

    both, args = jax.grad(loss, argnums=(0, 1)), (shape(2, 8, 8, 4), shape(3, 3, 4, 8))
    assert work.measure(compile_module(both, *args)).flops == flops.count(both, *args).flops


def test_bytes_of_a_fusion_a_loop_and_a_slice():
    size = 64 * 128 * ITEM
    assert (
        work.measure(compile_module(lambda x: jnp.sin(x) * 2.0, shape(64, 128))).bytes == 2 * size
    )

    def fetch(stack):
        """Reads one row of a stack per turn, adds it to what it carries."""
        start = jnp.zeros((64, 128)) + stack[0, 0, 0]
        return lax.scan(lambda x, row: (jnp.sin(x + row), None), start, stack)[0]

    least = 11 * 3 * size  # reads the row and the sum, writes the sum
    result = work.measure(compile_module(fetch, shape(11, 64, 128))).bytes
    assert least <= result <= 1.5 * least  # a whole stack per turn would be 11 times as much


def _traffic(size: int, stage) -> dict[str, float]:
    train_program = make_train_program(
        stage,
        optim=OptimConfig(),
        mesh=MESH,
        rules="fsdp",
        steps=10,
        ema_decay=0.9,
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    batch = batches.abstract(stage.batch_spec, size)
    text = train_program.step.lower(train_program.abstract, batch, key).compile().as_text()
    return communication.bytes_by_kind(communication.collectives(hlo.parse(text), devices=8))


@functools.cache
def deep():
    """Three scanned transformer blocks as a stage."""
    from unclip_jax.backbones.transformer import Transformer, TransformerConfig
    from unclip_jax.core.batch import Field

    cfg = TransformerConfig(width=32, depth=3, heads=2, causal=True)
    module = Transformer(cfg)

    def loss(params, batch, key):
        del key
        return jnp.mean(module.apply({"params": params}, batch["x"]) ** 2), {}

    return toy.Toy(
        name="deep",
        batch_spec={"x": Field((4, 32), "float32")},
        init=lambda key: module.init(key, jnp.zeros((1, 4, 32)))["params"],
        loss=loss,
    )


def test_split_parameters_travel_and_examples_stay_where_they_are():
    """Under fsdp what chips exchange depends on the parameters, not on the batch."""
    small, large = _traffic(64, deep()), _traffic(256, deep())
    assert small == large
    assert small["all-gather"] > 0


NESTED = """
HloModule step

%slice (s: bf16[24,64,128], i: s32[]) -> bf16[64,128] {
  %s = bf16[24,64,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %d = bf16[1,64,128]{2,1,0} dynamic-slice(%s, %i, %zero, %zero), dynamic_slice_sizes={1,64,128}
  ROOT %b = bf16[64,128]{1,0} bitcast(%d)
}

%product (w: bf16[128,128], t: bf16[24,64,128], j: s32[]) -> bf16[64,128] {
  %w = bf16[128,128]{1,0} parameter(0)
  %t = bf16[24,64,128]{2,1,0} parameter(1)
  %j = s32[] parameter(2)
  %x = bf16[64,128]{1,0} fusion(%t, %j), kind=kLoop, calls=%slice
  ROOT %y = bf16[64,128]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%update (u: bf16[24,64,128], k: s32[], v: bf16[64,128]) -> bf16[24,64,128] {
  %u = bf16[24,64,128]{2,1,0} parameter(0)
  %v = bf16[64,128]{1,0} parameter(2)
  %r = bf16[1,64,128]{2,1,0} bitcast(%v)
  %k = s32[] parameter(1)
  %none = s32[] constant(0)
  ROOT %c = bf16[24,64,128]{2,1,0} dynamic-update-slice(%u, %r, %k, %none, %none)
}

%outer (u.1: bf16[24,64,128], k.1: s32[], v.1: bf16[64,128]) -> bf16[24,64,128] {
  %u.1 = bf16[24,64,128]{2,1,0} parameter(0)
  %k.1 = s32[] parameter(1)
  %v.1 = bf16[64,128]{1,0} parameter(2)
  ROOT %c.1 = bf16[24,64,128]{2,1,0} fusion(%u.1, %k.1, %v.1), kind=kLoop, calls=%update
}

ENTRY %main (a: bf16[24,64,128], m: bf16[128,128], n: s32[]) -> bf16[24,64,128] {
  %a = bf16[24,64,128]{2,1,0} parameter(0)
  %m = bf16[128,128]{1,0} parameter(1)
  %n = s32[]{:S(6)} parameter(2)
  %f = bf16[64,128]{1,0} fusion(%m, %a, %n), calls=%product, c={"estimated_cycles":"7"}
  %g = bf16[64,128]{1,0} custom-call(%f), custom_call_target="tpu_custom_call"KERNEL
  ROOT %o = bf16[24,64,128]{2,1,0} fusion(%a, %n, %g), kind=kLoop, calls=%outer
}
"""
STATED = ', config={"cost_estimate":{"flops":"1000","transcendentals":"5"}}'


@pytest.mark.parametrize("stated", [False, True])
def test_fusions_in_fusions_read_slices_and_kernels_count_what_they_state(stated: bool):
    """Written by hand after the forms of libtpu: a product that reads one layer of a stack."""
    result = work.measure(hlo.parse(NESTED.replace("KERNEL", STATED if stated else "")))
    layer, weights = 64 * 128 * 2, 128 * 128 * 2
    product, kernel, update = 2 * layer + weights, 2 * layer, 2 * layer
    assert result.bytes == product + kernel + update
    assert result.flops == 2 * 64 * 128 * 128 + (1000 if stated else 0)
    assert result.hidden == (() if stated else ("tpu_custom_call",))
    assert result.cycles is None
