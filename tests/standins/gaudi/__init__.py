"""Run in the stand-in for Habana's bridge: `STANDIN=gaudi pytest tests/standins/gaudi`."""
