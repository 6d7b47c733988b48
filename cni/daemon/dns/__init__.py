"""DNS on the overlay: the names of what is attached, and the forwarding of every other question."""
