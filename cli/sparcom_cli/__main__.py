"""`python -m sparcom_cli` is `sparcom`."""

from sparcom_cli.main import main

if __name__ == "__main__":
    main()
