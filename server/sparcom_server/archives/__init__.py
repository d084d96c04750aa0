"""The folder of archives on the server."""

SUFFIX = ".zarr"  # of an archive's folder
