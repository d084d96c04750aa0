"""Runs instructions through vLLM, captures neurons and experts, and streams them into archives.

Importing this package imports neither torch nor vLLM; modules import them where they use them.
"""

import logging
import os

# While it is imported, before it reads VLLM_LOGGING_LEVEL, vLLM warns of a missing Triton, in each of its processes.
# They import our main module, and so this one, first. Errors are shown.
if os.environ.get("VLLM_LOGGING_LEVEL", "ERROR") == "ERROR":
    logging.getLogger("vllm").setLevel(logging.ERROR)
