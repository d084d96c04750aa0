"""From an archive to rows and counts: which rows count, read in blocks, proved to be those of their instruction."""
