"""vLLM's own configurations and models, built from tiny configurations without weights."""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from sparcom_extractor.settings import EngineSettings
from sparcom_models.base import TOKENIZER_FILES
from sparcom_models.tiny.families import ARCHITECTURES, Sizes

DEMO_MODEL = Path("models/smollm2-135m-instruct")
if "fake_hopper" not in sys.modules:
    # SPARCOM refuses pipeline stages on CPUs; no kernel for FP8 was implemented for the tests there.
    collect_ignore = ["check_pipeline.py", "check_quantized.py"]
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


@dataclass(frozen=True)
class VLLM:
    """The vLLM under test."""

    version: str
    cuda: bool


@pytest.fixture(scope="session")
def vllm() -> VLLM:
    """Import vLLM, and let it inspect model classes in this process: a process for each takes 10 s."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import vllm
        from vllm.model_executor.models import registry
        from vllm.platforms import current_platform
    registry._run_in_subprocess = lambda function: function()
    return VLLM(vllm.__version__.partition("+")[0], current_platform.is_cuda())


@pytest.fixture(scope="session")
def make_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that writes the tokenizer and the configuration of a tiny architecture, without weights."""
    from transformers import AutoConfig, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}

    def make(architecture: str, sizes: dict[str, int] | None = None, **options: Any) -> Path:
        folder = tmp_path_factory.mktemp(architecture)
        for name in TOKENIZER_FILES:
            if (DEMO_MODEL / name).exists():
                shutil.copy(DEMO_MODEL / name, folder / name)
        made = ARCHITECTURES[architecture](Sizes(**(sizes or {}), tokens={"vocab_size": len(tokenizer), **tokens}))
        config = AutoConfig.for_model(architecture.replace("-", "_"), **(made | options))
        config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
        config.dtype = "bfloat16"
        config.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def engine_config(vllm: VLLM) -> Callable[..., Any]:
    """Return a function that makes the VllmConfig of an engine with capture, through vLLM's own `EngineArgs`."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    from sparcom_extractor.launch.start import engine_arguments

    def make(model: Path, *, capture: bool = True, extra: dict[str, Any] | None = None, **settings: Any) -> Any:
        common = {"dtype": "bfloat16" if vllm.cuda else "float32", "max_model_len": 256, "max_num_seqs": 256}
        given = EngineSettings(model=str(model), load_format="dummy", capture=capture, **(common | settings))
        arguments = engine_arguments(given, "cuda" if vllm.cuda else "cpu") | (extra or {})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return AsyncEngineArgs(**arguments).create_engine_config()

    return make


@pytest.fixture(scope="session")
def process_group(vllm: VLLM) -> Iterator[None]:
    """Make torch's process group of this process alone."""
    from vllm.distributed import parallel_state

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parallel_state.init_distributed_environment(1, 0, "tcp://127.0.0.1:0", 0, backend="gloo")
        yield
        parallel_state.destroy_distributed_environment()


@pytest.fixture
def build(process_group: None) -> Callable[..., Any]:
    """Return a context manager that builds vLLM's model of a VllmConfig on the CPU, without weights.
    stage: makes a context in which the model is built and used."""
    from vllm.config import set_current_vllm_config
    from vllm.distributed import parallel_state
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    @contextmanager
    def building(config: Any, stage: Callable[[], Any] = nullcontext) -> Iterator[torch.nn.Module]:
        with warnings.catch_warnings(), set_current_vllm_config(config):
            warnings.simplefilter("ignore")
            parallel_state.initialize_model_parallel(backend="gloo")
            try:
                with stage():
                    with set_default_torch_dtype(config.model_config.dtype), torch.device("cpu"):
                        model = initialize_model(config)
                    yield model
            finally:
                parallel_state.destroy_model_parallel()

    return building
