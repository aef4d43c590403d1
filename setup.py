from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Puts the configs into the package, where yolact_d2.model_zoo finds them without a clone."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, "yolact_d2", "configs")
        self.mkpath(str(target))
        for path in sorted(Path(__file__).resolve().parent.glob("configs/*.yaml")):
            self.copy_file(str(path), str(target / path.name))


setup(
    name="yolact_d2",
    version="0.1.0",
    description="YOLACT, real-time instance segmentation, for Detectron2",
    license="Apache-2.0",
    packages=find_packages(include=("yolact_d2", "yolact_d2.*")),
    cmdclass={"build_py": BuildWithConfigs},
    python_requires=">=3.10",
    # Detectron2 is on no package index; README says how to install it.
    install_requires=[
        "torch>=2.6",
        "torchvision",
        "fvcore",
        "matplotlib",
        "numpy",
        "opencv-python",
        "Pillow",
        "pycocotools",
        "PyYAML",
        "setuptools<81",  # Detectron2 imports pkg_resources
        "tqdm",
    ],
    extras_require={"test": ["pytest", "hypothesis"]},
)
