"""The `sparcom` command: one subcommand a file, each loaded only when it is called.

On top of the other packages and used by none. Commands whose packages are not installed say which extra to install.
"""
