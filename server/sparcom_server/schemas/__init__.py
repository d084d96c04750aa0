"""Types of request bodies (`requests`) and responses (`reports`)."""
