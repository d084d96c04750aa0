"""`python -m sparcom_cli` is `sparcom`."""

from sparcom_cli.main import main

__spec__ = None  # so that multiprocessing imports this file in vLLM's processes, as it does the script `sparcom`

if __name__ == "__main__":
    main()
