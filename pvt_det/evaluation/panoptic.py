"""Evaluation of panoptic segmentation: panoptic quality (PQ, arXiv 1801.00868)."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from hotcoco.panoptic import PanopticEval
from PIL import Image

from pvt_det.errors import DataError
from pvt_det.evaluation.completeness import check_complete, unreadable_images
from pvt_det.utils.tables import metric_table
from pvt_det.utils.text import counted

logger = logging.getLogger(__name__)

PREDICTIONS_FILE = "panoptic_predictions.json"
_GROUPS = {"All": "", "Things": "_th", "Stuff": "_st"}


class PanopticEvaluator(DatasetEvaluator):
    """Computes PQ, SQ and RQ with hotcoco, gathered from all processes, and saves the predictions.

    The predictions are in COCO's panoptic format.

    Every image must be evaluated exactly once. Images that the loader marks as `unreadable` are excluded, also from the
    ground truth. Their number is logged.

    Args:
        dataset_name: Registered name of a data set with `panoptic_json` and `panoptic_root` in its metadata.
        output_dir: Folder for `panoptic_predictions.json`, and for a folder `panoptic_predictions` of PNG files.

    Raises:
        DataError: If the ground truth is missing or cannot be read.
    """

    def __init__(self, dataset_name: str, output_dir: str | Path) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        self.dataset_name = dataset_name
        self.predictions = Path(output_dir) / PREDICTIONS_FILE
        self.predictions.with_suffix("").mkdir(parents=True, exist_ok=True)
        self._things = {n: id_ for id_, n in metadata.thing_dataset_id_to_contiguous_id.items()}
        self._stuff = {n: id_ for id_, n in metadata.stuff_dataset_id_to_contiguous_id.items()}
        self._truth = _read(metadata.panoptic_json)
        self._truth_folder = metadata.panoptic_root
        self._file_names = _png_names(self._truth["images"])
        self.reset()

    def reset(self) -> None:
        """Clear all predictions."""
        self._annotations: list[dict[str, Any]] = []
        self._unreadable: list[int] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Add a batch.

        Args:
            inputs: Records from the mapper, with `image_id` and `file_name`.
            outputs: Outputs of the model, with `panoptic_seg`: a map of segment ids `H×W` (0 for no segment), and a
                dictionary per segment with "id", "isthing" and the contiguous "category_id".
        """
        for record, output in zip(inputs, outputs, strict=True):
            if record.get("unreadable"):
                self._unreadable.append(record["image_id"])
                continue
            segments, infos = output["panoptic_seg"]
            name = self._file_names.get(record["image_id"], f"{record['image_id']}.png")
            Image.fromarray(id_to_rgb(segments.cpu().numpy())).save(self.predictions.with_suffix("") / name)
            found = [{"id": info["id"], "category_id": self._category_id(info)} for info in infos]
            self._annotations.append({"image_id": record["image_id"], "file_name": name, "segments_info": found})

    def _category_id(self, info: dict[str, Any]) -> int:
        return (self._things if info["isthing"] else self._stuff)[info["category_id"]]

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Write the predictions JSON, and compute the metrics.

        Returns:
            On the main process, `{"panoptic_seg": {…}}` in percent: "PQ", "SQ" and "RQ", the same with "_th" for things
            and "_st" for stuff, and "PQ-<category>". On other processes, an empty dictionary.

        Raises:
            DataError: If images are missing, are repeated or do not belong to this data set.
        """
        gathered = comm.gather((self._annotations, self._unreadable), dst=0)
        if not comm.is_main_process():
            return {}
        annotations = sorted((a for part, _ in gathered for a in part), key=lambda a: a["image_id"])
        unreadable = {image_id for _, part in gathered for image_id in part}
        truth = self._truth | {
            "annotations": [a for a in self._truth["annotations"] if a["image_id"] not in unreadable]
        }
        ids = [annotation["image_id"] for annotation in annotations]
        check_complete(self.dataset_name, ids, (annotation["image_id"] for annotation in truth["annotations"]))
        if unreadable:
            logger.warning("%s excluded from all metrics", unreadable_images(len(unreadable)))
        self.predictions.write_text(json.dumps(truth | {"annotations": annotations}), encoding="utf-8")
        evaluator = PanopticEval(
            truth,
            str(self.predictions),
            gt_folder=self._truth_folder,
            pred_folder=str(self.predictions.with_suffix("")),
        )
        evaluator.evaluate()
        results = evaluator.results()
        values = {
            f"{key.upper()}{suffix}": 100 * results[group][key]
            for group, suffix in _GROUPS.items()
            for key in ("pq", "sq", "rq")
        }
        logger.info(
            "Panoptic quality on %s, %s\n%s", self.dataset_name, counted(len(ids), "image"), metric_table(values)
        )
        names = {category["id"]: category["name"] for category in truth["categories"]}
        return {"panoptic_seg": values | {f"PQ-{names[i]}": 100 * row["pq"] for i, row in results["per_class"].items()}}


def id_to_rgb(segments: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
    """Encode segment ids as the colors of COCO's panoptic PNG files, id = R + 256 G + 256² B.

    Args:
        segments: Segment ids `H×W`, from 0 to 256³ - 1.

    Returns:
        RGB image `H×W×3`.
    """
    return np.stack([segments >> shift & 255 for shift in (0, 8, 16)], axis=2).astype(np.uint8)


def _png_names(images: list[dict[str, Any]]) -> dict[Any, str]:
    """Return a file name per image id: the image's own, or the id if images in several folders have equal names."""
    names = {image["id"]: f"{Path(str(image.get('file_name', ''))).stem}.png" for image in images}
    # Some file systems ignore case.
    is_unique = len({name.lower() for name in names.values()}) == len(names)
    return names if is_unique else {image_id: f"{image_id}.png" for image_id in names}


def _read(panoptic_json: str) -> dict[str, Any]:
    try:
        truth = json.loads(Path(panoptic_json).read_text(encoding="utf-8"))
        if not all(isinstance(image["id"], int) for image in truth["images"]):
            raise ValueError("an image id is not an integer")
        annotated = [annotation["image_id"] for annotation in truth["annotations"]]
        if len(set(annotated)) < len(annotated):
            raise ValueError("two annotations have the same image_id")
        return {key: truth[key] for key in ("images", "annotations", "categories")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{panoptic_json} cannot be read as COCO's panoptic format ({error!r}).") from error
