"""The functions of the Python API: `pvt_det.train`, `pvt_det.evaluate`, `pvt_det.export` and `pvt_det.inspect`."""
