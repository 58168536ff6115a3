"""Functions that are compiled once for all values of guidance and eta."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.diffusion import guidance
from unclip_jax.inference import compiled_function
from unclip_jax.inference.compiled_function import CompiledFunction, low_memory_options
from unclip_jax.objectives.gaussian import SamplingConfig
from unclip_jax.parallel.mesh import sampling_mesh


class CountingFunction:
    """A function with the numbers of its traces and of its reports of compilation."""

    def __init__(self):
        self.traces, self.reports = 0, []
        self.compiled = CompiledFunction(
            self.function,
            static=("options",),
            mesh=sampling_mesh(1)[0],
            compiling=self.reports.append,
        )

    def function(self, x, *, options):
        self.traces += 1
        scale = options.guidance_scale
        if options.steps == "9":
            raise UserError(f"guidance_scale is {scale}, too much.")
        return x if guidance.is_off(scale) else 10 * scale * x + options.eta

    def __call__(self, x, **settings):
        return np.asarray(self.compiled(x, options=SamplingConfig(**settings))).tolist()


@pytest.fixture
def counter():
    return CountingFunction()


def test_values_of_guidance_and_eta_share_a_program(counter):
    x = np.ones(2, np.float32)
    assert counter(x, guidance_scale=2.0, eta=0.5) == [20.5, 20.5]
    assert counter(x, guidance_scale=3.0, eta=0.25) == [30.25, 30.25]
    assert counter.traces == 1


def test_settings_without_guidance_have_a_program_of_their_own(counter):
    x = np.ones(2, np.float32)
    counter(x, guidance_scale=2.0)
    assert counter(x, guidance_scale=1.0) == [1.0, 1.0]
    assert counter.traces == 2


def test_compilation_is_reported_before_and_after_it_and_only_then(counter):
    for size in (2, 2, 3, 2):
        counter(np.ones(size, np.float32), guidance_scale=2.0)
    counter(np.ones(2, np.float32), guidance_scale=4.0)
    counter(np.ones(2, np.float32), guidance_scale=4.0, threshold="static")
    assert counter.reports == [True, False] * 3 and counter.traces == 3


def test_compilation_is_reported_before_the_function_runs(counter):
    snapshots = []
    function = CompiledFunction(
        lambda x: snapshots.append(list(counter.reports)) or x,
        static=(),
        mesh=sampling_mesh(1)[0],
        compiling=counter.reports.append,
    )
    function(np.ones(2, np.float32))
    assert snapshots == [[True]]


def test_a_call_whose_arguments_are_no_arrays_is_not_reported(counter):
    with pytest.raises(TypeError, match="as an abstract array"):
        counter("text")
    assert counter.reports == []


def test_a_rejected_number_is_in_the_message(counter):
    with pytest.raises(UserError, match=r"guidance_scale is 4\.5, too much"):
        counter(np.ones(2, np.float32), steps="9", guidance_scale=4.5)
    assert counter.reports == [True, False]


def test_keys_are_data(counter):
    draw = CompiledFunction(
        lambda keys: jax.vmap(jax.random.normal)(keys),
        static=(),
        mesh=sampling_mesh(1)[0],
        compiling=counter.reports.append,
    )
    first, second = (draw(jax.random.split(jax.random.key(seed), 2)) for seed in (0, 1))
    assert not np.array_equal(first, second) and counter.reports == [True, False]


def test_the_layers_of_a_network_are_not_converted_to_float32_together():
    layers = jax.ShapeDtypeStruct((32, 256, 256), jnp.bfloat16)
    x = jax.ShapeDtypeStruct((8, 256), jnp.bfloat16)

    def network(layers, x):
        return jax.lax.scan(lambda x, layer: (x @ layer, None), x, layers)[0]

    def scratch(options):
        program = jax.jit(network, compiler_options=options).lower(layers, x).compile()
        return program.memory_analysis().temp_size_in_bytes

    together = 4 * layers.size
    assert scratch(low_memory_options()) < together / 8
    if jax.default_backend() == "cpu":  # else there is nothing to prevent
        assert scratch({}) >= together


def test_programs_beyond_the_limit_are_dropped(counter, monkeypatch):
    monkeypatch.setattr(compiled_function, "MOST_PROGRAMS", 2)
    x = np.ones(2, np.float32)
    for steps in ("10", "11", "12"):  # the third is one too many, and all are dropped
        counter(x, steps=steps, guidance_scale=2.0)
    assert counter.compiled._run._cache_size() == 0
    counter(x, steps="10", guidance_scale=2.0)
    counter(x, steps="10", guidance_scale=2.0)
    assert counter.traces == 4
