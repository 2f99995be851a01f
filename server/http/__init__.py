"""What both protocols need of HTTP: bounded connections and bodies, keys and quotas, events, probes, the API's page."""
