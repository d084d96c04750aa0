"""The six categories of HexaInst: short names, in the order of every table, and the task of each."""

from __future__ import annotations

CATEGORIES = {
    "CLS": "classification: choose a label for a given item",
    "CODE": "code: write, repair, explain, test or translate a program",
    "QA": "general question answering: answer from knowledge of the world",
    "GEN": "generation: write something new",
    "MATH": "mathematics: compute or prove something with one right answer",
    "SUM": "summarisation: condense a text that the instruction contains",
}
HALVES = ("synthetic", "natural")
ITEMS = 100  # per category and half
