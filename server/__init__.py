"""The HTTP server: routes, wire types, tokenizer, process supervision. Knows no torch."""
