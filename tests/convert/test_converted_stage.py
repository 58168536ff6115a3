"""Memory of a conversion: one stage, and one tensor of the files at a time."""

import tracemalloc
import weakref

import numpy as np

from unclip_jax.convert.converted_stage import ConvertedStage, Provenance, write_run
from unclip_jax.weight_files.tensor_source import TensorSource
from unclip_jax.weight_files.tensor_table import Entry

SIDE, TENSORS, STAGES = 512, 8, 5
ONE = SIDE * SIDE * 4 * TENSORS  # bytes of one stage


def part(name, alive):
    """A stage of TENSORS matrices, whose file counts the arrays that somebody still holds."""
    shapes = {f"t{i}": (SIDE, SIDE) for i in range(TENSORS)}

    def read(tensor):
        array = np.full(shapes[tensor], float(tensor[1:]), np.float32)
        alive.add(id(array))
        weakref.finalize(array, alive.discard, id(array))
        assert len(alive) <= 2, "the next tensor is read while two others are held"
        return array

    return ConvertedStage(
        name=name,
        stage="upsampler",
        config={},
        facts={"image_size": 4, "low_res_size": 1},
        source=TensorSource(name, shapes, read),
        entries=[Entry(f"leaf{i}", f"t{i}") for i in range(TENSORS)],
        abstract={f"leaf{i}": np.broadcast_to(np.float32(0), (SIDE, SIDE)) for i in range(TENSORS)},
    )


def test_memory_peaks_near_one_stage(tmp_path):
    alive = set()
    parts = [part(f"stage{i}", alive) for i in range(STAGES)]
    write_run(
        parts[:1], tmp_path / "warm", tokenizer_dir=tmp_path, tokenizer_hash="", origin=ORIGIN
    )
    tracemalloc.start()
    try:
        write_run(parts, tmp_path / "run", tokenizer_dir=tmp_path, tokenizer_hash="", origin=ORIGIN)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert not alive
    assert ONE < peak < 2.5 * ONE, f"{peak / ONE:.2f} stages of {STAGES}"


ORIGIN = Provenance(data="made here", licence="none")
