"""Worker classes for vLLM's platforms. vLLM is told their names (`worker_cls`) and makes them in its processes."""

CPU_WORKER = "sparcom_extractor.worker.cpu.CaptureCPUWorker"
GPU_WORKER = "sparcom_extractor.worker.gpu.CaptureGPUWorker"


def worker_class(device_type: str) -> str:
    """Name of the worker class for a platform's device type, `cpu` or `cuda`.

    Raises:
        UnsupportedModelError: another platform.
    """
    from sparcom_data.errors import UnsupportedModelError

    try:
        return {"cpu": CPU_WORKER, "cuda": GPU_WORKER}[device_type]
    except KeyError:
        raise UnsupportedModelError(
            f"capture runs on the vLLM platforms cpu and cuda; this one is {device_type!r}"
        ) from None
