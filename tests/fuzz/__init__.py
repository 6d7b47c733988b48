"""Fuzzers for the parsers that read what others wrote. `scripts/fuzz` runs them; a unit test replays the corpus."""
