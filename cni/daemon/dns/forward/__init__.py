"""Forwards the DNS questions that the overlay's zone does not answer: to which server, and what is kept of answers."""
