"""Packaging of threedgen.

The folders guidance/ and representations/ are at the top of the repository, but are installed as threedgen.guidance and
threedgen.representations, because other projects on PyPI have their bare names. In a checkout, threedgen/__init__.py
does the same mapping. configs/ and a part of weights/ are installed as package data; weights/pyproject.toml packages
the other weights.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
CODE = ("guidance", "representations")
DATA = {"configs": ["**/*.yaml"], "weights": ["README.md", "toybox-prior/**/*", "toybox-matte/*", "threedim-toybox/*"]}

VERSION = re.search(r'__version__ = "([^"]+)"', (ROOT / "threedgen/__init__.py").read_text(encoding="utf-8"))


def packages_below(folder: str, name: str) -> list[str]:
    """Return the names of the package in `folder`, which is called `name`, and of its subpackages."""
    return [name, *(f"{name}.{package}" for package in find_packages(str(ROOT / folder)))]


data = {name: patterns for name, patterns in DATA.items() if (ROOT / name).is_dir()}
packages = packages_below("threedgen", "threedgen")
for folder in CODE:
    packages += packages_below(folder, f"threedgen.{folder}")
packages += [f"threedgen.{name}" for name in data]

setup(
    name="threedgen",
    version=VERSION[1] if VERSION else "0",
    description="Text to 3D by optimisation, on a CPU or a GPU: any prior, distillation, representation",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=packages,
    package_dir={"threedgen": "threedgen"} | {f"threedgen.{name}": name for name in (*CODE, *data)},
    package_data={"threedgen": ["py.typed"], "threedgen.viewer": ["assets/*"]}
    | {f"threedgen.{name}": files for name, files in data.items()},
    include_package_data=False,
    entry_points={"console_scripts": ["threedgen = threedgen.__main__:main"]},
    install_requires=[
        "torch>=2.6",
        "pytorch-lightning>=2.6",
        "diffusers>=0.42",
        "transformers>=5",
        "tokenizers",
        "safetensors",
        "huggingface-hub",
        "numba>=0.60",
        "numpy>=2",
        "kornia>=0.8",
        "fast-simplification>=0.2",
        "fastapi>=0.135",
        "imageio>=2.30",
        "imageio-ffmpeg",
        "jinja2>=3.1",
        "mapbox-earcut>=2",
        "markupsafe>=2.1",
        "peft>=0.17",
        "pillow>=11.3",
        "pillow-heif>=1",
        "psutil>=6",
        "pydantic>=2.12",
        "pygltflib>=1.16",
        "pyyaml>=6",
        "rapidfuzz>=3",
        "rich>=13",
        "scikit-image>=0.24",
        "scipy>=1.13",
        "starlette>=0.46",
        "torchmetrics>=1.4",
        "trimesh>=4",
        "uvicorn>=0.30",
        "xatlas>=0.0.11",
    ],
    extras_require={
        "dev": [
            "assimp-py>=1.1",
            "coacd>=1.0.5",
            "hypothesis>=6",
            "jsonschema>=4",
            "mypy>=1.13",
            "nerfacc>=0.5.3",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ray>=2.9",
            "ruff>=0.9",
            "triton>=3.2; sys_platform == 'linux'",
            "usd-core>=24.8",
            "viser>=1.1",
            "websockets>=14",
        ],
        # make docs: the documentation as a site
        "docs": ["mkdocs>=1.6", "mkdocs-material>=9.7", "mkdocstrings[python]>=1.0"],
        # embedded models that the default, quick and image configs do not need; see weights/pyproject.toml
        "weights": ["threedgen-weights>=0.1,<0.2"],
        # back ends for GPUs; torch for CUDA brings triton along. tinycudann is on no index, see docs/gpu.md
        "nerfacc": ["nerfacc>=0.5.3"],
        # field.backend=gsplat of field.name=gaussians
        "gsplat": ["gsplat>=1.5"],
        "triton": ["triton>=3.2"],
        "xformers": ["xformers"],
        # engine=ray of janus-benchmark
        "ray": ["ray>=2.9"],
        # matte=rembg, matte=grabcut
        "matte": ["onnxruntime", "opencv-python-headless", "rembg"],
        # T5's vocabulary as DeepFloyd IF ships it
        "deepfloyd": ["sentencepiece", "protobuf"],
        # --view; viser wants rich below 15, so constraints.txt has it there
        "viser": ["viser>=1.1", "websockets>=14"],
        # collision=parts: several convex shapes that follow the object
        "parts": ["coacd>=1.0.5"],
        # logger=tensorboard, logger=wandb
        "tensorboard": ["tensorboard>=2.15"],
        "wandb": ["wandb>=0.17"],
        # formats=[usdz]
        "usd": ["usd-core>=24.8"],
    },
)
