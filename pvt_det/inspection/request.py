"""What to inspect, and what to write: the options of `pvt-det inspect`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pvt_det.errors import ConfigError
from pvt_det.utils.paths import make_folder

# Default number of images per iteration.
BATCHES = {"cpu": 4, "gpu": 16}


def check_place(path: Path) -> None:
    """Check that a config can be written to a path, and create its folder.

    Args:
        path: The config file to write.

    Raises:
        ConfigError: The file exists, does not end in .yaml or cannot be written.
    """
    if path.suffix != ".yaml":
        raise ConfigError(f"{path} is not a config file name. Expected a name that ends in .yaml.")
    if path.exists():
        raise ConfigError(f"{path} already exists. Choose another name for the config, or remove the file.")
    make_folder(path.parent)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to inspect, and what to write.

    Attributes:
        annotations: Annotations in any supported format, the folder of a whole data set, or a folder of label maps.
        images: Folder of the images. None finds it from `annotations`.
        val_json: Annotations to evaluate on. None takes those of a whole data set, if any.
        val_labels: Label maps to evaluate on.
        val_images: Images of the validation data. None takes `images`.
        val_fraction: Share of the images to set aside as validation data, between 0 and 1. None splits nothing.
        seed: Seed of that choice. None takes 0.
        html: HTML page to write.
        check_data: How to check the images, a value of DATASETS.CHECK.
        on_error: What to do with broken data, a value of DATASETS.ON_ERROR.
        allow_outside: Whether file names may lead outside `images`.
        write_json: File for the annotations as COCO JSON.
        classes_of: Run folder or config whose classes the data must have.
        class_names: File with the class names of label maps.
        ignore_value: Value of void in label maps, 0 to 255. None finds it from the values.
        task: "retinanet", "atss", "gfl", "mask-rcnn" or "semantic". None chooses by the data.
        write_config: Config file to write.
        model: Name of a backbone or of a config. None takes PVT-Tiny.
        weights: Value of MODEL.WEIGHTS, or "none" for random weights. None takes the ImageNet weights of the model.
        device: Device to train on, "cpu" or "gpu". None takes a GPU if this machine has one.
        batch: Images per iteration, 1 or more. None takes 4 on a CPU and 16 on GPUs.
    """

    annotations: Path
    images: Path | None = None
    val_json: Path | None = None
    val_labels: Path | None = None
    val_images: Path | None = None
    val_fraction: float | None = None
    seed: int | None = None
    html: Path | None = None
    check_data: str = "fast"
    on_error: str = "stop"
    allow_outside: bool = False
    write_json: Path | None = None
    classes_of: str | None = None
    class_names: Path | None = None
    ignore_value: int | None = None
    task: str | None = None
    write_config: Path | None = None
    model: str | None = None
    weights: str | None = None
    device: str | None = None
    batch: int | None = None

    def check(self, *, is_semantic: bool) -> None:
        """Check that the options fit each other, before any data is read.

        Args:
            is_semantic: Whether the data are label maps.

        Raises:
            ConfigError: An option has no effect, or a value is out of range.
        """
        self._check_kind(is_semantic)
        self._check_split()
        if self.val_images and not (self.val_json or self.val_labels):
            raise ConfigError("--val-images needs --val-json or --val-labels. Add the annotations of these images.")
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"--batch {self.batch}: expected 1 or more.")
        if self.ignore_value is not None and not 0 <= self.ignore_value <= 255:
            raise ConfigError(f"--ignore-value {self.ignore_value}: expected 0 to 255.")
        unused = [f"--{name}" for name in ("model", "weights", "device", "batch") if getattr(self, name) is not None]
        if unused and not self.write_config:
            raise ConfigError(
                f"{', '.join(unused)} has no effect without --write-config FILE. Add it, or leave them out."
            )
        if self.write_json and self.write_json.exists():
            raise ConfigError(
                f"--write-json {self.write_json}: the file already exists. Choose another name, or remove it."
            )

    def _check_split(self) -> None:
        """Check the options about validation data from a part of the images."""
        if self.val_fraction is None:
            if self.seed is not None:
                raise ConfigError("--seed has no effect without --val-fraction. Add it, or leave --seed out.")
            return
        if not 0 < self.val_fraction < 1:
            raise ConfigError(f"--val-fraction {self.val_fraction}: expected a number between 0 and 1, such as 0.2.")
        if self.val_json:
            raise ConfigError("--val-fraction and --val-json both define the validation data. Leave one out.")
        if not (self.write_json or self.write_config):
            raise ConfigError(
                "--val-fraction needs the name of a file to write. Add --write-config FILE for a config that uses both "
                "parts, or --write-json FILE for their annotations only."
            )

    def _check_kind(self, is_semantic: bool) -> None:
        """Refuse options of the other kind of data."""
        of_objects = ("val_json", "val_fraction", "allow_outside", "write_json", "classes_of")
        known = {
            "val_json": "Use --val-labels.",
            "val_fraction": "Move some images and label maps to other folders, and use --val-labels and --val-images.",
            "val_labels": "Use --val-json.",
        }
        for name in of_objects if is_semantic else ("val_labels", "class_names", "ignore_value"):
            if getattr(self, name) not in (None, False):
                raise ConfigError(
                    f"--{name.replace('_', '-')} has no effect {'on' if is_semantic else 'without'} label maps (--task "
                    f"semantic). {known.get(name, 'Leave it out.')}"
                )
