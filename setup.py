"""Packaging of fx_d2. Needs nothing but setuptools: torch is not imported here.

Detectron2 is not listed below because it is not on the package index under its own name;
``tools/install_detectron2.py`` (called by ``make install``) puts it there.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

# Upper bounds stand where a break is known or a next major version is likely. The exact versions
# that are tested together are in requirements/constraints.txt.
CORE = [
    "torch>=2.14,<3",
    "torchvision>=0.29",
    "numpy>=2.0,<3",
    "pillow>=10.3",
    "timm>=1.0.15,<2",
    "pycocotools>=2.0.8,<3",
    "faster-coco-eval>=1.6.5,<2",
    "scikit-learn>=1.5,<2",
    "pandas>=2.2,<4",
    "opencv-python-headless>=4.10",
    "safetensors>=0.4.5",
    "tqdm>=4.66",
    "matplotlib>=3.8",
    # Detectron2 0.6 needs these; the patched build is installed without its dependencies.
    "yacs>=0.1.8,<0.2",
    "omegaconf>=2.3,<2.4",
    "hydra-core>=1.3.2,<1.4",
    "fvcore>=0.1.5.post20221221,<0.1.6",
    "iopath>=0.1.9,<0.1.10",
    "tabulate",
    "termcolor",
    "cloudpickle",
    "tensorboard>=2.17,<3",
]

EXTRAS = {
    # Reading DICOM in its compressed transfer syntaxes.
    "dicom": [
        "pydicom>=3.0.1,<4",
        "pylibjpeg>=2.0.1,<3",
        "pylibjpeg-openjpeg>=2.4,<3",
        "pylibjpeg-rle>=2.0,<3",
        "pyjpegls>=1.5,<2",
        "python-gdcm>=3.0.24,<4",
    ],
    # 12-bit JPEG Extended. GPL-3.0, hence apart and never a default.
    "dicom-gpl": ["pylibjpeg-libjpeg>=2.3,<3"],
    # An independent reader of MetaImage files; the package reads the common ones itself.
    "mha": ["SimpleITK>=2.4,<3"],
    # Why a classifier says so: integrated gradients, class activation maps.
    "explain": ["captum>=0.8,<1"],
    # U-Net, LinkNet and FPN on many encoders, for lung masks.
    "seg-zoo": ["segmentation-models-pytorch>=0.5,<0.7"],
    "demo": ["fastapi>=0.115", "uvicorn>=0.30", "python-multipart>=0.0.18", "jinja2>=3.1"],
    "export": ["onnx>=1.18,<2", "onnxscript>=0.5", "onnxruntime>=1.22,<2"],
    "track": ["wandb>=0.20", "mlflow-skinny>=3.5,<4"],
    "scale": ["pyarrow>=18", "webdataset>=0.2.111,<2", "fsspec>=2024.6"],
    "tune": ["optuna>=4.2,<6", "peft>=0.15,<1"],
    "dev": [
        "pytest>=8.3",
        "pytest-xdist>=3.6",
        "pytest-cov>=5",
        "hypothesis>=6.120",
        "ruff>=0.12",
        "mypy>=1.15",
        # The reference for our own weighted boxes fusion.
        "ensemble-boxes>=1.0.9",
    ],
}

packages = find_packages(include=("fx_d2", "fx_d2.*"))
package_dir = {}
if (ROOT / "configs").is_dir():
    # The config files live at the top, where Detectron2 users look for them, and are installed
    # inside the package. They are data: the folder has no __init__.py.
    packages.append("fx_d2.configs")
    package_dir["fx_d2.configs"] = "configs"

readme = ROOT / "README.md"
# Read, not imported: the package needs torch and Detectron2.
init = (ROOT / "fx_d2" / "__init__.py").read_text(encoding="utf-8")
version = re.search(r'^__version__ = "([^"]+)"$', init, re.MULTILINE).group(1)

setup(
    name="fx_d2",
    version=version,
    description="A Detectron2 extension for chest radiographs: one model, many partial labels",
    long_description=readme.read_text(encoding="utf-8") if readme.is_file() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=packages,
    package_dir=package_dir,
    package_data={
        "fx_d2": ["py.typed", "engine/cycles/*.yaml"],
        "fx_d2.configs": ["*.yaml", "**/*.yaml"],
    },
    install_requires=CORE,
    extras_require=EXTRAS,
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
    ],
)
