"""The node as numbers, for Prometheus: read, named, served."""
