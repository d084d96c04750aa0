"""Run instructions through vLLM, capture active neurons and top-k experts, and stream them into archives.

Importing this package imports neither torch nor vLLM; its modules import them on demand.
"""

import json
import logging
import multiprocessing
import os
from logging.config import dictConfig
from pathlib import Path

# vLLM warns about a missing Triton during its import, before it reads VLLM_LOGGING_LEVEL, in each of its processes.
# Each process imports our main module first, and so this one. Errors still show.
logging.getLogger("vllm").setLevel(os.environ.get("VLLM_LOGGING_LEVEL", "ERROR").upper())

# vLLM configures the logs of its processes late. Its first messages would be plain text among lines of JSON.
if multiprocessing.parent_process() and (_configuration := os.environ.get("VLLM_LOGGING_CONFIG_PATH")):
    dictConfig(json.loads(Path(_configuration).read_text()))
