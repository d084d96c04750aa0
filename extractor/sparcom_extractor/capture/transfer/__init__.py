"""Asynchronous device-to-host copies."""
