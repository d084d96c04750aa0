"""Fakes for tests: a device with delayed streams, and a worker that uses it."""
