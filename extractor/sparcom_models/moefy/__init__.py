"""Split the FFNs of a dense model into experts."""
