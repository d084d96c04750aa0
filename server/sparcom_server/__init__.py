"""The service: instructions in over REST, jobs that run one at a time, archives out over HTTP, a page to watch it.

It calls engines through the Protocols in `protocols.py` and never imports vLLM or torch.
"""
