"""Build HexaInst from its synthetic half and public sources."""
