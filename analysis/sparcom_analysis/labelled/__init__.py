"""Results as labelled arrays of xarray, for notebooks."""
