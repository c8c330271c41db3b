"""Packaging.

`kernels/`, `tools/` and `checkpoints_conv/` are top-level folders that install as
`megaladder.kernels` and so on.

They have no `__init__.py` of their own: an importable top-level `kernels` package would break
transformers, which imports the hub package of that name. Tried as wheel, editable and without
installation: tests/packaging/test_packaging.py.

The requirements below are ranges for use as a library; exact pins of a CPU machine are in
tools/env/cpu.txt (`make env`).
"""

import runpy
from pathlib import Path

from setuptools import find_namespace_packages, setup

MAPPED = ("kernels", "tools", "checkpoints_conv", "examples")

REQUIRES = [
    "torch>=2.11,<2.14",
    # the newest line for Python 3.11; the CUDA-free patches of platform.py are written for it
    "megatron-core==0.16.1",
    "psutil>=5.9",  # undeclared need of megatron-core: without it its checkpoint writer hangs
    "einops>=0.8",
    "transformers>=5.16.1,<5.20",
    "tokenizers>=0.23.2",
    "huggingface_hub>=2,<3",
    "safetensors>=0.6.2",
    "numpy>=2.1,<2.5",
    "pyarrow>=18",
    "datasets>=4",
    "fsspec>=2024.3",
    "zstandard>=0.23",  # data files that end in .zst
    "datasketch>=1.6",
    "filelock>=3.12",
    "pydantic>=2.12,<3",
    "tyro>=1.0.17,<2",
    "PyYAML>=6",
    "rich>=14",
    "Jinja2>=3.1",
    "scipy>=1.15",
    "jsonschema>=4.23,<5",
    "math-verify[antlr4_13_2]==0.9.0",  # a grader's version is part of its results
    "python-flint==0.9.0",  # exact rationals and certified balls of the grader
]
GPU_STACK = runpy.run_path(str(Path(__file__).parent / "megaladder" / "process" / "gpu_stack.py"))
EXTRAS = {
    "gpu": list(GPU_STACK["GPU_EXTRA"]),
    "wandb": ["wandb>=0.20"],
    "tensorboard": ["tensorboard>=2.18"],
    "mlflow": ["mlflow-skinny>=3"],
    "trackio": ["trackio>=0.2"],
    "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.5", "mkdocstrings[python]>=1"],
    "notebook": ["nbclient>=0.10", "ipykernel>=6.29"],
    "test": [
        "pytest>=8",
        "pytest-timeout>=2.4",
        "pytest-xdist>=3.8",
        "hypothesis>=6.130",
        "ruff>=0.12",
        "mypy>=2.4",
        "types-PyYAML>=6",
        "websockets>=14",  # the browser of tests/watch
    ],
}


def packages() -> list[str]:
    """Every package of ours, the mapped folders under the name they install as."""
    found = find_namespace_packages(include=["megaladder*"], exclude=["*__pycache__*"])
    for folder in MAPPED:
        found.append(f"megaladder.{folder}")
        found += [
            f"megaladder.{folder}.{sub}"
            for sub in find_namespace_packages(folder, exclude=["*__pycache__*"])
        ]
    return found


setup(
    name="megaladder",
    version="0.1.0",
    description=(
        "SFT and GRPO of reasoning language models on megatron-core, from a laptop to H200 nodes"
    ),
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    packages=packages(),
    package_dir={
        "megaladder": "megaladder",
        **{f"megaladder.{folder}": folder for folder in MAPPED},
    },
    package_data={
        "": [
            "*.yaml",
            "*.json",
            "*.jinja",
            "*.html",
            "*.css",
            "*.js",
            "*.txt",
            "*.ipynb",
            "py.typed",
        ],
        "megaladder.examples": ["*.sh"],
        "megaladder.examples.slurm": ["*.sbatch", "*.sh", "*.md"],
    },
    entry_points={"console_scripts": ["megaladder=megaladder.cli:main"]},
)
