"""The server over HTTP on the sim backend: protocols, limits, life and death, without weights."""
