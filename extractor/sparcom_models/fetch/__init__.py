"""Puts models on disk without a model hub, or with one."""
