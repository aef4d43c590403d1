from setuptools import find_packages, setup

setup(
    name="yolact_d2",
    version="0.1.0",
    description="YOLACT, real-time instance segmentation, for Detectron2",
    license="Apache-2.0",
    packages=find_packages(include=("yolact_d2", "yolact_d2.*")),
    python_requires=">=3.9",
    # Detectron2 is on no package index; README says how to install it.
    install_requires=[
        "torch>=2.0",
        "torchvision",
        "fvcore",
        "matplotlib",
        "numpy",
        "opencv-python",
        "Pillow",
        "pycocotools",
        "setuptools<81",  # Detectron2 imports pkg_resources
        "tqdm",
    ],
    extras_require={"test": ["pytest"]},
)
