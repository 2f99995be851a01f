"""What the server tells of itself: metrics under TGI's and vLLM's names, traces over OTLP, logs."""
