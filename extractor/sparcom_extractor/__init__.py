"""Run instructions through vLLM, capture active neurons and top-k experts, and stream them into archives.

Importing this package imports neither torch nor vLLM; its modules import them on demand.
"""

import logging
import os

# vLLM warns about a missing Triton during its import, before it reads VLLM_LOGGING_LEVEL, in each of its processes.
# Each process imports our main module first, and so this one. Errors still show.
logging.getLogger("vllm").setLevel(os.environ.get("VLLM_LOGGING_LEVEL", "ERROR").upper())
