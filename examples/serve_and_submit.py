"""Start a server, submit instructions, wait, and read the masks over HTTP.

python examples/serve_and_submit.py MODEL INSTRUCTIONS FOLDER
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import httpx
import zarr

from sparcom_data.instructions.files import read_instructions

model, source, folder = sys.argv[1:]
port = "8765"
command = [sys.executable, "-m", "sparcom_cli", "serve", "--port", port, "--data-dir", folder, "--kv-cache-gib", "0.5"]
instructions = [item.model_dump(mode="json", exclude_defaults=True) for item in read_instructions(Path(source))]

with subprocess.Popen([*command, "--model", model]) as server, httpx.Client(timeout=60) as client:
    try:
        client.base_url = f"http://127.0.0.1:{port}"
        while True:  # until the model is loaded
            try:
                if client.get("/ready").is_success:
                    break
            except httpx.TransportError:
                pass  # the server does not listen yet
            if server.poll() is not None:
                sys.exit("the server stopped; see its output")
            time.sleep(0.5)
        job = client.post("/v1/extractions", json={"archive": "first", "instructions": instructions}).raise_for_status()
        address = job.headers["Location"]
        while (state := client.get(address).json())["state"] in ("queued", "running"):
            time.sleep(0.5)
        print(f"{state['state']}: {state['progress']['complete']} of {len(instructions)} instructions")
        archive = zarr.open_group(f"{client.base_url}/v1/archives/first/zarr", mode="r")
        print("masks:", archive["neuron/active"].shape, "(tokens, layers, bytes of 8 neurons each)")
    finally:
        server.terminate()
