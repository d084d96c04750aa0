"""Instruction files, the input of SPARCOM, and Zarr archives, its output.

Depends on numpy, zarr and pydantic only. Imports neither the engine that fills archives nor the analysis.
"""
