"""The REST routes. They only translate."""
