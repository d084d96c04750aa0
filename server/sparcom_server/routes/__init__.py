"""The REST routes. They only translate between HTTP and the service."""
