"""The measurements of scripts/bench, a module each."""
