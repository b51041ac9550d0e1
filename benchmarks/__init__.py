"""Comparisons with other implementations. Run `python -m benchmarks SUITE` in a checkout."""

import pvt_det  # noqa: F401  (its warning filters must be set before Detectron2 is imported)
