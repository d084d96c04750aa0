"""The `sparcom` command. One file per subcommand, each imported only when it is called.

No other package imports this one. If a package is missing, the command names the extra that installs it.
"""
