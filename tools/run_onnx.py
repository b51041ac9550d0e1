"""Run an exported detector, segmentor or classifier with only NumPy, OpenCV and ONNX Runtime.

Use it as a template: it resizes an image, runs the model, and maps the results back to pixels of the original image.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import onnxruntime

Image = npt.NDArray[np.uint8]  # BGR pixels H×W×3, as read by OpenCV


def fit(image: Image, short: int, long: int) -> Image:
    """Resize an image to a short side, or to a long side if the long side would otherwise be longer.

    Args:
        image: BGR pixels `H×W×3`.
        short: Length of the short side in pixels.
        long: Maximum length of the long side in pixels.
    """
    height, width = image.shape[:2]
    scale = min(short / min(height, width), long / max(height, width))
    size = (int(width * scale + 0.5), int(height * scale + 0.5))
    # INTER_AREA averages pixels when shrinking, like Pillow's filter in training.
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def crop(image: Image, side: int) -> Image:
    """Resize an image and return the center crop for a classifier.

    For a crop of 224 pixels, the short side is resized to 256.

    Args:
        image: BGR pixels `H×W×3`.
        side: Side of the crop in pixels.
    """
    image = fit(image, round(side * 256 / 224), 10**6)
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return image[top : top + side, left : left + side]


def run(session: onnxruntime.InferenceSession, image: Image) -> dict[str, npt.NDArray[Any]]:
    """Run the model on one image.

    Args:
        session: The model.
        image: BGR pixels `H×W×3`.

    Returns:
        Outputs of the model by name.
    """
    rgb = image[:, :, ::-1]
    batch = np.ascontiguousarray(rgb.transpose(2, 0, 1)[None])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": batch}), strict=True))


def paste(mask: npt.NDArray[np.float32], box: npt.NDArray[np.float32], shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Paste the mask of a box into an empty mask of the image.

    Args:
        mask: Probabilities `28×28` inside the box.
        box: Box (x0, y0, x1, y1) in pixels.
        shape: Height and width of the image in pixels.
    """
    height, width = shape
    x0, y0, x1, y1 = box
    columns = (np.arange(width, dtype=np.float32) + 0.5 - x0) / (x1 - x0) * mask.shape[1] - 0.5
    rows = (np.arange(height, dtype=np.float32) + 0.5 - y0) / (y1 - y0) * mask.shape[0] - 0.5
    x, y = np.meshgrid(columns.astype(np.float32), rows.astype(np.float32))
    return cv2.remap(mask, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0) >= 0.5


def show(image: Image, found: dict[str, npt.NDArray[Any]], names: list[str], threshold: float) -> Image:
    """Draw boxes, masks and class names on a copy of an image.

    Args:
        image: BGR pixels `H×W×3`.
        found: Outputs of a detector by name, in pixels of the image.
        names: Class names.
        threshold: Minimum score of the objects to draw, in [0, 1].
    """
    drawn = image.copy()
    for i in np.flatnonzero(found["scores"] >= threshold):
        box, label = found["boxes"][i], int(found["labels"][i])
        color = tuple(int(c) for c in np.random.default_rng(label).integers(60, 255, 3))
        if "masks" in found:
            inside = paste(found["masks"][i], box, (image.shape[0], image.shape[1]))
            drawn[inside] = (0.5 * drawn[inside] + 0.5 * np.array(color)).astype(np.uint8)
        x0, y0, x1, y1 = (int(v) for v in box.round())
        cv2.rectangle(drawn, (x0, y0), (x1, y1), color, 2)
        caption = f"{names[label] if label < len(names) else label} {found['scores'][i]:.2f}"
        cv2.putText(drawn, caption, (x0, max(12, y0 - 4)), cv2.FONT_HERSHEY_SIMPLEX, 0.5, color, 1, cv2.LINE_AA)
    return drawn


def main(argv: list[str] | None = None) -> int:
    """Run the model on the images of the command line.

    Args:
        argv: Command-line arguments. By default those of the process.

    Returns:
        Exit code of the process.
    """
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: run_onnx.py m.onnx a.jpg",
    )
    parser.add_argument("model", help="ONNX file")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--score", type=float, default=0.5, help="minimum score (%(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path("output/onnx"), metavar="DIR", help="output folder (%(default)s)"
    )
    args = parser.parse_args(argv)

    try:
        session = onnxruntime.InferenceSession(args.model)
        metadata = session.get_modelmeta().custom_metadata_map
        names = json.loads(metadata["classes"])
    # ONNX Runtime's errors have no common base class.
    except Exception as error:
        reason = f"its metadata has no {error}. Export it with pvt-det" if isinstance(error, KeyError) else error
        print(f"error: {args.model} cannot be used: {reason}", file=sys.stderr)
        return 4
    for path in args.images:
        image = cv2.imread(path, cv2.IMREAD_COLOR)
        if image is None:
            print(f"error: {path} is not an image that OpenCV can read", file=sys.stderr)
            return 3
        if metadata["task"] == "classification":
            scores = run(session, crop(image, int(metadata["side"])))["scores"][0]
            best = np.argsort(-scores)[:5]
            print(f"{path}: " + ", ".join(f"{names[i] if i < len(names) else i} {scores[i]:.3f}" for i in best))
            continue
        small = fit(image, int(metadata["short_side"]), int(metadata["long_side"]))
        found = run(session, small)
        if metadata["task"] == "detection":
            scale = np.array([image.shape[1] / small.shape[1], image.shape[0] / small.shape[0]] * 2, np.float32)
            found["boxes"] = found["boxes"] * scale
            result = show(image, found, names, args.score)
            print(f"{path}: {int((found['scores'] >= args.score).sum())} objects")
        else:
            labels = cv2.resize(
                found["labels"][0].astype(np.uint8), image.shape[1::-1], interpolation=cv2.INTER_NEAREST
            )
            result = cv2.addWeighted(image, 0.5, cv2.applyColorMap(labels * 37, cv2.COLORMAP_HSV), 0.5, 0)
            print(f"{path}: {', '.join(names[k] if k < len(names) else f'class {k}' for k in np.unique(labels))}")
        args.output.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(args.output / Path(path).name), result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
