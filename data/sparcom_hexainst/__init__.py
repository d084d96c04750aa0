"""HexaInst: the instruction set of the paper's six categories, how it is built, checked, and judged by people.

categories ─▶ synthetic (ours) + sources ─▶ natural (drawn) ─▶ build ─▶ JSON lines ─▶ check, annotate ─▶ agreement
"""
