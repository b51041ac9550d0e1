"""Defaults of reports and model cards that the commands show in their help."""

# AP points by which a reproduction may differ. A different seed changes AP on COCO by about as much.
TOLERANCE = 0.3
# Bootstrap samples of the images per interval. Each takes about a second on COCO val2017.
BOOTSTRAP = 200
# What a model card says about anything that only its authors can state.
NOT_STATED = "not stated"
