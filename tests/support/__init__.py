"""What several folders of tests share: tiny models, plain devices, engines in one process, references."""
