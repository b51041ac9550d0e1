"""Studies: configs, data sets, seeds and overrides that one command trains, evaluates and puts into a table."""
