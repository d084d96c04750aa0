"""Parts of `benchmarks/gpu.py`: steps in processes of their own, measurements, judgements, and the report."""
