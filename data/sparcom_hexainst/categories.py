"""The six categories of HexaInst: their short names, in the order of every table, and what an item of each asks for."""

from __future__ import annotations

CATEGORIES = {
    "CLS": "classification: choose a label for a given item",
    "CODE": "code: write, repair, explain, test or translate a program",
    "QA": "general question answering: answer from knowledge of the world",
    "GEN": "generation: write something new",
    "MATH": "mathematics: compute or prove something with one right answer",
    "SUM": "summarisation: condense a text that the instruction brings",
}
HALVES = ("synthetic", "natural")
ITEMS = 100  # of one category in one half
