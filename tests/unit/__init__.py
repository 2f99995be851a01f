"""What needs nothing: no weights, no process, no device but the host."""
