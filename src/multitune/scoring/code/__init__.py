"""Answers that are programs: run behind walls, ranked, and asked for with and without demonstrations."""
