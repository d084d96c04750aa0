"""General and unique neurons and experts: members of all categories, of several, or of one."""
