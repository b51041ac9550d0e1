"""Follow objects from frame to frame with ByteTrack (Zhang et al., ECCV 2022), from the package trackers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances

from pvt_det.errors import ConfigError

# Objects that are seen again count down to this score, as in the paper. The detector must return them.
LOWEST_SCORE = 0.1
_LOST_SECONDS = 1.0  # for which an object may be hidden
# `trackers` requires opencv-python, which would overwrite the files of opencv-python-headless.
_INSTALL = "pip install 'supervision>=0.30' scipy && pip install --no-deps 'trackers>=2.6'"


class Tracker:
    """Gives the objects of a video numbers that stay the same from frame to frame.

    An object with at least `score_threshold` starts a track when it is seen in a second frame. A track
    continues with detections of any score that overlap the place where the object is expected. It ends after a second
    without one. The
    classes of the detections are not compared.

    Args:
        rate: Frames per second.
        score_threshold: Minimum score of objects that are not tracked yet, 0 to 1.

    Raises:
        ConfigError: The packages supervision and trackers are not installed.
    """

    def __init__(self, rate: float, score_threshold: float) -> None:
        self._supervision, trackers = _packages()
        self._score_threshold = score_threshold
        self._rate = rate
        self._tracker = trackers.ByteTrackTracker(
            frame_rate=rate,
            # In frames at a rate of 30. At low rates, a track may miss one frame.
            lost_track_buffer=round(30 * max(_LOST_SECONDS, 2 / rate)),
            track_activation_threshold=score_threshold,
            high_conf_det_threshold=score_threshold,
        )

    def __call__(self, detections: Instances, position: int) -> Instances:
        """Find the objects of the next frame.

        Args:
            detections: The detections in the frame, with scores from `LOWEST_SCORE`.
            position: Number of the frame at a constant rate, from 0. Numbers are left out where frames are.

        Returns:
            The detections that belong to a track or have at least `score_threshold`. Their field `track_ids` has the
            number of the track, from 1, or -1 for an object without a track.
        """
        scores = detections.scores.cpu().numpy()
        found = self._supervision.Detections(
            xyxy=detections.pred_boxes.tensor.cpu().numpy(), confidence=scores, data={"index": np.arange(len(scores))}
        )
        tracked = self._tracker.update(found, timestamp=position / self._rate)
        track_ids = np.full(len(scores), -1)
        if len(tracked):
            track_ids[tracked.data["index"]] = np.where(tracked.tracker_id >= 0, tracked.tracker_id + 1, -1)
        kept = torch.from_numpy((track_ids > 0) | (scores >= self._score_threshold))
        result = detections[kept]
        result.track_ids = torch.from_numpy(track_ids)[kept]
        return result


def require_tracking() -> None:
    """Check that the packages for tracking are installed, before any work.

    Raises:
        ConfigError: A package is missing.
    """
    _packages()


def _packages() -> tuple[Any, Any]:
    try:
        import supervision
        import trackers
    except ImportError as error:
        raise ConfigError(f"Tracking needs the package {error.name}, which is missing. Run: {_INSTALL}") from error
    return supervision, trackers
