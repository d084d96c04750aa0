"""The folder of archives on the server."""

SUFFIX = ".zarr"  # of the folder of an archive
