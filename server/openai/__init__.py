"""OpenAI's HTTP API (chat completions, completions, models): parse -> run -> stream or collect."""
