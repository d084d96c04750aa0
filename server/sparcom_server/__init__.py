"""The service: takes instructions over REST, runs jobs one at a time, serves archives over HTTP, and shows a web page.

It calls engines through the Protocols in `protocols.py` and never imports vLLM or torch.
"""
