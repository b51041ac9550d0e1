"""Run trained models on images, and write, draw and explain what they find."""

# Default minimum score of detections, of `Predictor` and of `pvt-det predict` alike.
SCORE_THRESHOLD = 0.5
