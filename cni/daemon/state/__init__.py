"""The daemon's state (node, services, attachments, addresses, keys), in memory and in SQLite."""
