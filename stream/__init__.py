"""Declaration, features, engine, worker, recovery and command line: what joins models to connectors."""
