"""Instruction sets and the archive format: what goes into SPARCOM and what comes out.

Needs numpy, zarr and pydantic only. It knows neither the engine that fills archives nor the analysis that reads them.
"""
