"""The books: what the daemon holds (node, services, attachments, addresses, keys), in memory and in SQLite."""
