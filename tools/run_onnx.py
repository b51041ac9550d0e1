"""Run an exported detector, segmentor or classifier with no more than numpy, OpenCV and onnxruntime.

A file to copy from: resizing, running, and bringing what is found back to the picture's own pixels.
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

Picture = npt.NDArray[np.uint8]  # H×W×3, BGR, as OpenCV has it


def fit(picture: Picture, short: int, long: int) -> Picture:
    """Resize so that the short side is `short`, or the long one `long` where it would be longer."""
    height, width = picture.shape[:2]
    scale = min(short / min(height, width), long / max(height, width))
    size = (int(width * scale + 0.5), int(height * scale + 0.5))
    # Shrinking has to average, as Pillow's filter does that the models are trained with.
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def crop(picture: Picture, side: int) -> Picture:
    """The middle square of a classifier: short side 256 for a crop of 224."""
    picture = fit(picture, round(side * 256 / 224), 10**6)
    top, left = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
    return picture[top : top + side, left : left + side]


def run(session: onnxruntime.InferenceSession, picture: Picture) -> dict[str, npt.NDArray[Any]]:
    """Run on one picture; gives the outputs by name."""
    rgb = picture[:, :, ::-1]
    batch = np.ascontiguousarray(rgb.transpose(2, 0, 1)[None])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": batch}), strict=True))


def paste(mask: npt.NDArray[np.float32], box: npt.NDArray[np.float32], shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """A mask of 28×28 probabilities in its box, as a mask of a whole picture."""
    height, width = shape
    x0, y0, x1, y1 = box
    columns = (np.arange(width, dtype=np.float32) + 0.5 - x0) / (x1 - x0) * mask.shape[1] - 0.5
    rows = (np.arange(height, dtype=np.float32) + 0.5 - y0) / (y1 - y0) * mask.shape[0] - 0.5
    x, y = np.meshgrid(columns.astype(np.float32), rows.astype(np.float32))
    return cv2.remap(mask, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0) >= 0.5


def show(picture: Picture, found: dict[str, npt.NDArray[Any]], names: list[str], least: float) -> Picture:
    """Draw boxes, masks and names of what scores `least` or more."""
    drawn = picture.copy()
    for i in np.flatnonzero(found["scores"] >= least):
        box, label = found["boxes"][i], int(found["labels"][i])
        colour = tuple(int(c) for c in np.random.default_rng(label).integers(60, 255, 3))
        if "masks" in found:
            where = paste(found["masks"][i], box, (picture.shape[0], picture.shape[1]))
            drawn[where] = (0.5 * drawn[where] + 0.5 * np.array(colour)).astype(np.uint8)
        x0, y0, x1, y1 = (int(v) for v in box.round())
        cv2.rectangle(drawn, (x0, y0), (x1, y1), colour, 2)
        text = f"{names[label] if label < len(names) else label} {found['scores'][i]:.2f}"
        cv2.putText(drawn, text, (x0, max(12, y0 - 4)), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, 1, cv2.LINE_AA)
    return drawn


def main(argv: list[str] | None = None) -> int:
    """Run on the pictures of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: run_onnx.py m.onnx a.jpg",
    )
    parser.add_argument("model", help="an .onnx file")
    parser.add_argument("pictures", nargs="+", metavar="PICTURE")
    parser.add_argument("--score", type=float, default=0.5, help="least score (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("output/onnx"), metavar="DIR", help="(%(default)s)")
    args = parser.parse_args(argv)

    try:
        session = onnxruntime.InferenceSession(args.model)
        about = session.get_modelmeta().custom_metadata_map
        names = json.loads(about["classes"])
    # The runtime's errors have no class in common.
    except Exception as error:
        what = f"its metadata has no {error}: export it by pvt-det" if isinstance(error, KeyError) else error
        print(f"error: {args.model} cannot be used: {what}", file=sys.stderr)
        return 4
    for path in args.pictures:
        picture = cv2.imread(path, cv2.IMREAD_COLOR)
        if picture is None:
            print(f"error: {path} is no picture that OpenCV can read", file=sys.stderr)
            return 3
        if about["task"] == "classification":
            scores = run(session, crop(picture, int(about["side"])))["scores"][0]
            best = np.argsort(-scores)[:5]
            print(f"{path}: " + ", ".join(f"{names[i] if i < len(names) else i} {scores[i]:.3f}" for i in best))
            continue
        small = fit(picture, int(about["short_side"]), int(about["long_side"]))
        found = run(session, small)
        if about["task"] == "detection":
            scale = np.array([picture.shape[1] / small.shape[1], picture.shape[0] / small.shape[0]] * 2, np.float32)
            found["boxes"] = found["boxes"] * scale
            result = show(picture, found, names, args.score)
            print(f"{path}: {int((found['scores'] >= args.score).sum())} objects")
        else:
            labels = cv2.resize(
                found["labels"][0].astype(np.uint8), picture.shape[1::-1], interpolation=cv2.INTER_NEAREST
            )
            result = cv2.addWeighted(picture, 0.5, cv2.applyColorMap(labels * 37, cv2.COLORMAP_HSV), 0.5, 0)
            print(f"{path}: {', '.join(names[k] if k < len(names) else f'class {k}' for k in np.unique(labels))}")
        args.output.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(args.output / Path(path).name), result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
