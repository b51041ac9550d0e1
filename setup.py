"""Package metadata. Detectron2 is installed by `tools/setup_env.py`, since the package index has no such name."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "pvt_det/__init__.py").read_text(), re.MULTILINE)[1]


class BuildWithRecipes(build_py):
    """Puts the recipes and studies into the package. In an editable install, they are used from the checkout."""

    def run(self):
        super().run()
        if not self.editable_mode:
            for name in ("configs", "studies"):
                shutil.copytree(ROOT / name, Path(self.build_lib) / "pvt_det/model_zoo" / name, dirs_exist_ok=True)


setup(
    name="pvt_det",
    version=VERSION,
    description="Pyramid Vision Transformers for dense prediction with Detectron2",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    keywords=["object detection", "instance segmentation", "vision transformer", "detectron2", "pvt"],
    python_requires=">=3.11",
    packages=find_packages(include=["pvt_det", "pvt_det.*"]),
    cmdclass={"build_py": BuildWithRecipes},
    entry_points={"console_scripts": ["pvt-det = pvt_det.cli.main:main"]},
    package_data={"pvt_det": ["py.typed", "**/*.json", "**/*.yaml"]},
    install_requires=[
        "torch>=2.9",
        "torchvision>=0.24",
        "numpy>=2",
        "timm>=1.0.22",
        "hotcoco>=1.3,<2",
        "pycocotools>=2.0.8",
        "filelock>=3.12",
        "fvcore>=0.1.5.post20221221",
        "huggingface_hub>=0.30",
        "msgspec>=0.19",
        "opencv-python-headless>=4.10.0.84",  # the one with windows needs the system's libGL
        "packaging>=24.2",  # with an older one, the oldest setuptools cannot be imported
        "pillow>=11",
        "pyyaml>=6",
        "rich>=14.1",
        "safetensors>=0.5",
        "setuptools>=77,<82",  # for the pkg_resources that the model zoo of any Detectron2 imports
        "shtab>=1.7",
        "simplejpeg>=1.8",
        "tensorboard>=2.18",
        "matplotlib>=3.9",
    ],
    extras_require={
        "detr": ["scipy>=1.13", "transformers>=5.20"],
        "export": ["onnx>=1.18", "onnxruntime>=1.22", "onnxscript>=0.7"],
        "openvino": ["nncf>=3", "onnx>=1.18", "onnxscript>=0.7", "openvino>=2025.3"],  # nncf is for int8
        "ray": ["ray[data]>=2.44"],
        "signing": ["model-signing>=1.1", "pyopenssl>=24"],  # model-signing imports pyopenssl without requiring it
        "imagenet": ["scipy>=1.13"],  # reads the ILSVRC2012 devkit's meta.mat
        "mlflow": ["alembic>=1.13", "mlflow-skinny>=3", "sqlalchemy>=2"],  # the others are for its SQLite store
        "cloud": ["obstore>=0.9"],
        "slurm": ["submitit>=1.5"],
        "supervision": ["supervision>=0.30"],  # earlier versions install a second OpenCV
        "video": ["av>=14"],  # writes H.264, which browsers play
        "wandb": ["wandb>=0.19"],
        "app": ["gradio>=6"],  # needs pillow<13
        "dev": [
            "alembic>=1.13",
            "av>=14",
            "flask>=3",  # with flask-cors, for the server of moto, without the many requirements of moto[server]
            "flask-cors>=5",
            "gradio>=6",
            "hypothesis>=6.100",
            "import-linter>=2.5",
            "ipykernel>=6",
            "mkdocs-material>=9.5",
            "mkdocstrings[python]>=0.26",
            "mlflow-skinny>=3",
            "model-signing>=1.1",
            "moto[s3]>=5",
            "mypy>=1.15",
            "nbclient>=0.10",
            "nbformat>=5.10",
            "nncf>=3",
            "onnx>=1.18",
            "onnxruntime>=1.22",
            "onnxscript>=0.7",
            "obstore>=0.9",
            "openvino>=2025.3",
            "psutil>=6",
            "pyopenssl>=24",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.12",
            "scipy>=1.13",
            "sqlalchemy>=2",
            "submitit>=1.5",
            "supervision>=0.30",
            "transformers>=5.20",
            "types-PyYAML>=6.0.12",
            "wandb>=0.19",
            "wheel>=0.45",
        ],
    },
)
