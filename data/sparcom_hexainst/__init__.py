"""HexaInst, the instruction set of the paper's six categories: build it, check it, and have people judge it.

synthetic half (shipped) + natural half (drawn from sources) ─▶ build ─▶ JSON Lines ─▶ check, annotate ─▶ agreement
"""
