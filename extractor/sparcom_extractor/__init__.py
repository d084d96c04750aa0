"""The engine, the hooks and the writer: runs instructions through vLLM and streams masks into archives.

Importing this package imports neither torch nor vLLM; the modules that need them do so where they are used.
"""
