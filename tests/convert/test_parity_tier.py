"""The comparisons with PyTorch may be skipped in `make test`, and never in `make parity`."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
REQUIRED = "UNCLIP_REQUIRE_PARITY"


@pytest.mark.slow
@pytest.mark.parametrize("required", [False, True])
def test_without_pytorch_parity_is_skipped_or_has_failed(tmp_path, required):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('no torch today')")
    env = {
        **os.environ,
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
        REQUIRED: str(int(required)),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["tests/parity/test_torch_files.py"]
    process = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    if required:
        assert process.returncode not in (0, pytest.ExitCode.NO_TESTS_COLLECTED)
        assert f"may not be skipped with {REQUIRED}=1" in process.stdout
        assert "no torch today" in process.stdout
    else:
        assert process.returncode in (0, pytest.ExitCode.NO_TESTS_COLLECTED)
        assert "1 skipped" in process.stdout
