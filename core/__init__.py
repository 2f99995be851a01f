"""The hardware-neutral core. Knows no accelerator and no HTTP; see ARCHITECTURE.md for its rooms."""
