"""The service: instructions in over REST, jobs that run one at a time, archives out over HTTP, a page to watch it.

It knows engines only as the Protocols in `protocols.py` and archives only through `sparcom_data`; it never imports
vLLM or torch, so that it can be tested, and its routes read, without either.
"""
