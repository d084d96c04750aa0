"""Lists of components by id, for other programs."""
