"""The REST routes, one resource a file. They translate; what they ask for is done elsewhere."""
