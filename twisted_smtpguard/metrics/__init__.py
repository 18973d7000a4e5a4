"""How is a guard watched? Metrics and health over HTTP. The only importer of twisted.web and prometheus-client."""
