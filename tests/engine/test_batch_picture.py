"""The drawing of a training batch shows the images in color with their boxes, masks or label maps."""

from __future__ import annotations

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from PIL import Image

from pvt_det.engine.batch_picture import save_batch_picture
from pvt_det.engine.trainer import PVTTrainer
from pvt_det.run_folder import BATCH_PICTURE_NAME


def sample(color, masks=None) -> dict:
    """Return a 48×64 image of one color with a box from (16, 12) to (32, 36)."""
    instances = Instances((48, 64))
    instances.gt_boxes = Boxes(torch.tensor([[16.0, 12.0, 32.0, 36.0]]))
    instances.gt_classes = torch.tensor([1])
    if masks is not None:
        instances.gt_masks = masks
    image = torch.tensor(color, dtype=torch.uint8)[:, None, None].expand(3, 48, 64)
    return {"image": image, "instances": instances}


def picture(path, batch, **settings) -> np.ndarray:
    save_batch_picture(batch, path, class_names=["cat", "dog"], **{"image_format": "RGB"} | settings)
    return np.asarray(Image.open(path)).astype(int)


def test_boxes_and_masks(tmp_path):
    polygons = PolygonMasks([[np.array([16.0, 12, 32, 12, 32, 36, 16, 36])]])
    bitmap = torch.zeros(1, 48, 64, dtype=torch.bool)
    bitmap[:, 12:36, 16:32] = True
    batch = [sample((0, 0, 0)), sample((0, 0, 0), polygons), sample((0, 0, 0), BitMasks(bitmap))]
    pixels = picture(tmp_path / "x.jpg", batch)
    assert pixels.shape == (240, 3 * 320 + 2 * 4, 3)
    # Enlarged five times: the sides of the box are at 80 and 160, and masks fill the middle.
    for index, is_filled in enumerate((False, True, True)):
        part = pixels[:, index * 324 : index * 324 + 320]
        assert part[150, 76:84].max() > 60
        assert part[150, 156:164].max() > 60
        assert (part[170, 110:130].max(axis=1) > 60).all() == is_filled
        assert part[150:, 200:].max() < 20


def test_at_most_300_objects_are_drawn(tmp_path):
    crowd = sample((0, 0, 0))
    others = Instances((48, 64), gt_boxes=Boxes(torch.tensor([[4.0, 4, 60, 44]])), gt_classes=torch.tensor([0]))
    crowd["instances"] = Instances.cat([crowd["instances"]] * 300 + [others] * 20_000)
    pixels = picture(tmp_path / "x.jpg", [crowd])
    assert pixels.shape == (18 + 240, 320, 3)
    assert pixels[1, 200:].min() > 240
    assert pixels[:18].min() < 60  # the caption
    assert pixels[18 + 150, 76:84].max() > 60
    assert pixels[18 + 180 : 18 + 200, 16:24].max() < 20  # where the left side of the others would be


def test_bgr_images_are_converted_to_rgb(tmp_path):
    for image_format, color in (("RGB", (200, 50, 10)), ("BGR", (10, 50, 200))):
        pixels = picture(tmp_path / "x.jpg", [sample(color)], image_format=image_format)
        assert np.abs(pixels[-20:, -20:] - (200, 50, 10)).max() < 12


def test_label_map_is_painted_with_striped_void_and_a_legend(tmp_path):
    """Void was painted as a class unless its value was 255."""
    labels = torch.full((48, 64), 11)
    labels[:, 32:] = 3
    shown = {"image": torch.full((3, 48, 64), 120, dtype=torch.uint8), "sem_seg": labels}
    names = [f"class {number}" for number in range(11)]
    pixels = picture(tmp_path / "x.jpg", [shown], label_names=names, ignore_value=11)
    assert np.ptp(pixels[100, 250]) > 30
    void = pixels[:240, :150]
    assert np.ptp(void, axis=2).max() < 30  # gray
    assert np.ptp(void) > 60  # striped
    assert pixels.shape[0] > 240  # the legend
    assert (pixels[240:].min(axis=2) < 100).any()


def test_run_draws_first_batch_without_changing_training(tiny_cfg, tmp_path):
    """The drawing is saved at the start only, and changes neither random states nor batches."""
    from pvt_det.data.loader import build_detection_train_loader
    from pvt_det.data.sets import register_datasets

    cfg = tiny_cfg(tmp_path / "run", SOLVER__MAX_ITER=2, SOLVER__STEPS=[])
    (tmp_path / "run").mkdir()
    register_datasets(cfg)
    trainer = PVTTrainer(cfg)
    seen, states = [], []

    def record(model, inputs):
        seen.append(inputs[0])
        states.append((np.random.get_state()[1].copy(), torch.get_rng_state()))

    trainer.model.register_forward_pre_hook(record)
    np.random.seed(5)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    trainer.train()
    assert (states[0][0] == before[0]).all()
    assert torch.equal(states[0][1], before[1])
    with Image.open(tmp_path / "run" / BATCH_PICTURE_NAME) as image:
        assert image.size[0] == 2 * 320 + 4
    plain = iter(build_detection_train_loader(cfg))
    for batch in seen:
        for actual, expected in zip(batch, next(plain), strict=True):
            assert torch.equal(actual["image"], expected["image"])
    assert len(seen) == 2
