"""Fakes for tests: a device with late streams, and a worker that uses it."""
