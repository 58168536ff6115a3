"""cuDNN's attention and XLA's give the same numbers and gradients, where there is a GPU."""

import os
import shutil
import subprocess
import sys

import pytest

COMPARE = """
import jax, jax.numpy as jnp, numpy as np
from unclip_jax.backbones import attention
from unittest import mock

def outputs(q, k, v, mask, causal, path):
    def loss(q, k, v):
        out = attention.attention(q, k, v, mask=mask, causal=causal)
        return jnp.sum(out.astype(jnp.float32) ** 2), out
    with mock.patch.object(attention, "_implementation", lambda *_: path):
        grads, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return [np.asarray(x, np.float32) for x in (out, *grads)]

def drawn(seed, length):
    return jax.random.normal(jax.random.key(seed), (4, length, 8, 64), jnp.bfloat16)

cases = [(64, 64, False, False), (64, 64, True, True), (64, 324, True, False)]
for length, keys, masked, causal in cases:
    q, k, v = drawn(0, length), drawn(1, keys), drawn(2, keys)
    seen = jnp.arange(keys) < jnp.array([[keys], [9], [keys // 2], [5]])
    mask = seen[:, None, None] if masked else None
    assert attention._implementation(q, k, mask) == "cudnn"
    both = [outputs(q, k, v, mask, causal, path) for path in ("cudnn", "xla")]
    for a, b in zip(*both):
        assert np.max(np.abs(a - b)) <= 2**-5 * max(1.0, np.max(np.abs(b))), (length, keys, masked)
print("the same")
"""


@pytest.mark.slow
def test_cudnn_and_xla_agree_on_a_gpu():
    """In a process of its own: this one has pretended devices only."""
    if shutil.which("nvidia-smi") is None:
        pytest.skip("there is no GPU here")
    environment = {**os.environ, "JAX_PLATFORMS": "cuda"}
    command = [sys.executable, "-c", COMPARE]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 0 and "the same" in process.stdout, process.stderr
