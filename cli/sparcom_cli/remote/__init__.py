"""Commands that talk to a server, through `sparcom_client`."""
