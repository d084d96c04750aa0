"""Start a server, submit instructions, wait, and read the masks over HTTP.

python examples/serve_and_submit.py MODEL INSTRUCTIONS FOLDER
"""

from __future__ import annotations

import subprocess
import sys
import time

from sparcom_client import Client, NoAnswerError

model, source, folder = sys.argv[1:]
port = "8765"
command = [sys.executable, "-m", "sparcom_cli", "serve", "--port", port, "--data-dir", folder, "--kv-cache-gib", "0.5"]

with subprocess.Popen([*command, "--model", model]) as server, Client(f"http://127.0.0.1:{port}") as client:
    try:
        while True:  # until the server listens; jobs wait for the model
            try:
                client.ready()
                break
            except NoAnswerError:
                if server.poll() is not None:
                    sys.exit("the server stopped; see its output")
                time.sleep(0.5)
        job = client.wait(client.submit(source, archive="first"))
        print(f"{job.state}: {job.progress.complete} of {job.progress.instructions} instructions")
        archive = client.open_archive(job)
        print("masks:", archive.array("neuron/active").shape, "(tokens, layers, bytes of 8 neurons each)")
    finally:
        server.terminate()
