"""Worker classes for vLLM's platforms; vLLM gets their names as `worker_cls` and makes them in its processes."""

from sparcom_data.errors import UnsupportedModelError

WORKER_CLASSES = {
    "cpu": "sparcom_extractor.worker.cpu.CaptureCPUWorker",
    "cuda": "sparcom_extractor.worker.gpu.CaptureGPUWorker",
}


def worker_class(device_type: str) -> str:
    """Return the name of the worker class for a platform's device type; UnsupportedModelError for others."""
    if device_type not in WORKER_CLASSES:
        raise UnsupportedModelError(f"capture runs on the vLLM platforms cpu and cuda; this one is {device_type!r}")
    return WORKER_CLASSES[device_type]
