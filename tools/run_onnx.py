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
Color = tuple[int, int, int]  # BGR, 0 to 255

FONT = cv2.FONT_HERSHEY_SIMPLEX
# Bright colors, which contrast with the black rim around them: red, cyan, yellow, pink, green, blue, …
COLORS: list[Color] = [
    (65, 85, 255),
    (255, 220, 0),
    (0, 225, 255),
    (225, 125, 255),
    (95, 240, 75),
    (255, 165, 115),
    (50, 160, 255),
    (255, 145, 190),
    (150, 200, 0),
    (125, 255, 210),
]


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
    """Draw boxes, masks and class names on a copy of an image, as `pvt-det predict` does.

    Args:
        image: BGR pixels `H×W×3`.
        found: Outputs of a detector by name, in pixels of the image.
        names: Class names.
        threshold: Minimum score of the objects to draw, in [0, 1].
    """
    drawn = image.copy()
    order = [i for i in np.argsort(found["scores"], kind="stable") if found["scores"][i] >= threshold]
    line = max(2, round(0.0016 * sum(image.shape[:2])))
    colors = pick_colors(found["boxes"][order], found["labels"][order], len(names))
    for i, color in zip(order, colors, strict=True):
        if "masks" in found:
            inside = paste(found["masks"][i], found["boxes"][i], (image.shape[0], image.shape[1]))
            drawn[inside] = (0.55 * drawn[inside] + 0.45 * np.array(color)).astype(np.uint8)
    for i, color in zip(order, colors, strict=True):
        outline(drawn, found["boxes"][i], color, line)
    taken: list[tuple[int, int, int, int]] = []
    for i, color in reversed(list(zip(order, colors, strict=True))):
        label = int(found["labels"][i])
        text = f"{names[label] if label < len(names) else label} {found['scores'][i]:.0%}"
        write(drawn, text, found["boxes"][i], color, taken)
    return drawn


def pick_colors(boxes: npt.NDArray[Any], labels: npt.NDArray[Any], count: int) -> list[Color]:
    """Give each object a color of its class, and overlapping objects of one class different shades.

    Args:
        boxes: Boxes of the objects, `N×4` (x0, y0, x1, y1).
        labels: Class of each object.
        count: Number of classes. A single class uses all colors.
    """
    chosen: list[Color] = []
    for i, label in enumerate(labels):
        b, g, r = base = COLORS[int(label) % len(COLORS)]
        pale, dark = tuple(int(0.4 * v + 153) for v in base), (int(0.38 * b), int(0.38 * g), int(0.38 * r))
        shades = COLORS if count == 1 else [base, (pale[0], pale[1], pale[2]), dark]
        touching = [
            chosen[j]
            for j in range(i)
            if labels[j] == label and (boxes[i, :2] <= boxes[j, 2:]).all() and (boxes[j, :2] <= boxes[i, 2:]).all()
        ]
        chosen.append(min(shades, key=touching.count))
    return chosen


def contrast(color: Color) -> Color:
    """Return black for a bright BGR color, and white for a dark one."""
    return (0, 0, 0) if 0.11 * color[0] + 0.59 * color[1] + 0.3 * color[2] > 110 else (255, 255, 255)


def outline(image: Image, box: npt.NDArray[Any], color: Color, line: int) -> None:
    """Draw a box as an opaque line with a contrasting rim, inside the image.

    Args:
        image: BGR pixels `H×W×3`, drawn on in place.
        box: Box (x0, y0, x1, y1) in pixels.
        color: BGR color of the line.
        line: Width of the line in pixels.
    """
    height, width = image.shape[:2]
    line = max(1, min(line, round(float(min(box[2:] - box[:2])) / 10)))
    rim = max(1, round(line / 3))
    low = np.clip(box[:2] - line / 2 - rim, 0, (width - 1, height - 1)).round().astype(int)
    high = np.clip(box[2:] + line / 2 + rim, low + 1, (width, height)).round().astype(int)
    for inset, thick, paint in ((0, line + 2 * rim, contrast(color)), (rim, line, color)):
        (x0, y0), (x1, y1) = low + inset, high - inset
        image[y0 : min(y0 + thick, y1), x0:x1] = image[max(y1 - thick, y0) : y1, x0:x1] = paint
        image[y0:y1, x0 : min(x0 + thick, x1)] = image[y0:y1, max(x1 - thick, x0) : x1] = paint


def write(image: Image, text: str, box: npt.NDArray[Any], color: Color, taken: list[tuple[int, int, int, int]]) -> None:
    """Write a label at a box, inside the image and without covering other labels. Leave it out if it does not fit.

    Args:
        image: BGR pixels `H×W×3`, drawn on in place.
        text: The text.
        box: Box (x0, y0, x1, y1) in pixels.
        color: BGR color behind the text.
        taken: Corners (x0, y0, x1, y1) of the labels so far. The new one is added.
    """
    size = max(12, 0.009 * sum(image.shape[:2]))
    scale, thick, pad = size / 26, max(1, round(size / 12)), round(size / 4)
    (width, height), base = cv2.getTextSize(text, FONT, scale, thick)
    width, height = width + 2 * pad, height + base + pad
    x0, y0, x1, y1 = (int(v) for v in box.round())
    for x, y in ((x0, y0 - height), (x1 - width, y0 - height), (x0, y0), (x0, y1), (x1 - width, y1), (x0, y1 - height)):
        left, top = max(0, min(x, image.shape[1] - width)), max(0, min(y, image.shape[0] - height))
        right, bottom = left + width, top + height
        is_free = all(left >= t[2] or t[0] >= right or top >= t[3] or t[1] >= bottom for t in taken)
        if is_free and right <= image.shape[1] and bottom <= image.shape[0]:
            taken.append((left, top, right, bottom))
            cv2.rectangle(image, (left, top), (right - 1, bottom - 1), color, cv2.FILLED)
            place = (left + pad, bottom - base - pad // 2)
            cv2.putText(image, text, place, FONT, scale, contrast(color), thick, cv2.LINE_AA)
            return


def show_labels(image: Image, labels: Image, names: list[str]) -> Image:
    """Tint each class of a label map and write its name in its middle.

    Args:
        image: BGR pixels `H×W×3`.
        labels: Class of each pixel `H×W`.
        names: Class names.
    """
    hues = (np.arange(256) * 0.618 % 1 * 180).astype(np.uint8)  # spaced by the golden ratio around the color wheel
    wheel = np.stack([hues, np.full_like(hues, 200), np.full_like(hues, 230)], axis=1)
    table = cv2.cvtColor(wheel[None], cv2.COLOR_HSV2BGR)[0]
    drawn = cv2.addWeighted(image, 0.5, table[labels], 0.5, 0)
    taken: list[tuple[int, int, int, int]] = []
    for k in np.unique(labels):
        depth = cv2.distanceTransform(np.pad(labels == k, 1).astype(np.uint8), cv2.DIST_L2, 3)
        y, x = np.unravel_index(depth.argmax(), depth.shape)
        b, g, r = table[k].tolist()
        write(drawn, names[k] if k < len(names) else f"class {k}", np.array([x, y, x, y]), (b, g, r), taken)
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
    if metadata["task"] == "panoptic segmentation":
        print(f"error: {args.model} is a panoptic model. Run it with: pvt-det predict", file=sys.stderr)
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
            result = show_labels(image, labels, names)
            print(f"{path}: {', '.join(names[k] if k < len(names) else f'class {k}' for k in np.unique(labels))}")
        args.output.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(args.output / Path(path).name), result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
