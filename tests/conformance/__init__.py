"""The kit on the host, in all the ways that it computes, and what the kit must catch."""
