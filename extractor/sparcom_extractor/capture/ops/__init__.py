"""Custom ops and kernels that capture masks, routes and counts, with their CPU references."""
