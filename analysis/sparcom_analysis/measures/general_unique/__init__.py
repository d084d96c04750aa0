"""General and unique neurons and experts, and LAPE: which components belong to which categories."""
