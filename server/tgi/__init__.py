"""Text Generation Inference's own HTTP API: parse -> run -> stream or collect."""
