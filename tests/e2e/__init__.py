"""Real weights, a real server process and real clients, from this environment alone."""
