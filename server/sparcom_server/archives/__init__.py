"""The folder of archives on the server."""
