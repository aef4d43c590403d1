import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "yolact_d2/__init__.py").read_text())[1]

# Folders that an installed package needs too; like Detectron2's projects they stay outside it.
FOLDERS = {"yolact_d2.configs": "configs", "yolact_d2.demo": "demo", "yolact_d2.tools": "tools"}

setup(
    name="yolact_d2",
    version=VERSION,
    description="YOLACT, YOLACT++ and EmbedMask, one-stage instance segmentation, for Detectron2",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    packages=[*find_packages(include=("yolact_d2", "yolact_d2.*", "yolact_runtime")), *FOLDERS],
    package_dir=FOLDERS,
    package_data={
        "yolact_d2": ["py.typed"],
        "yolact_d2.configs": ["*.yaml", "common/*/*.py", "lazy/*.py"],
    },
    python_requires=">=3.10",
    # Detectron2 is on no package index; README says how to install it.
    install_requires=[
        "torch>=2.6",
        "torchvision",
        "fvcore",
        "iopath",
        "matplotlib",
        "numpy",
        "opencv-python",
        "Pillow",
        "pycocotools",
        "PyYAML",
        "tabulate",
        "tqdm",
    ],
    extras_require={
        "safetensors": ["safetensors"],
        "onnx": ["onnx", "onnxscript", "onnxruntime"],
        "openvino": ["onnx", "onnxscript", "openvino"],
        "int8": ["nncf"],
        "timm": ["timm"],
        "test": [
            *("hypothesis", "pytest", "safetensors", "timm"),
            *("onnx", "onnxscript", "onnxruntime", "openvino", "nncf"),
        ],
        "dev": ["mypy~=2.4", "ruff~=0.17.0"],
    },
    entry_points={
        "console_scripts": [
            "yolact-train = yolact_d2.engine.train_net:main",
            "yolact-demo = yolact_d2.demo.demo:main",
            "yolact-convert-weights = yolact_d2.tools.convert_weights:main",
            "yolact-export = yolact_d2.tools.export_model:main",
            "yolact-inspect-dataset = yolact_d2.tools.inspect_dataset:main",
            "yolact-visualize-embeddings = yolact_d2.tools.visualize_embeddings:main",
            "yolact-visualize-predictions = yolact_d2.tools.visualize_predictions:main",
            "yolact-visualize-prototypes = yolact_d2.tools.visualize_prototypes:main",
        ]
    },
)
