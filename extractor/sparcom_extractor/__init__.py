"""The engine, the hooks and the writer: runs instructions through vLLM and streams masks into archives.

Importing this package imports neither torch nor vLLM; the modules that need them do so where they are used.
"""

import logging
import os

# vLLM warns of a missing Triton while it is imported, before it reads VLLM_LOGGING_LEVEL (see `engine`). Each of its
# processes would, and each imports the main module of ours first. Errors are shown.
if os.environ.get("VLLM_LOGGING_LEVEL", "ERROR") == "ERROR":
    logging.getLogger("vllm").setLevel(logging.ERROR)
