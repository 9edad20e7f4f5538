"""What the commands of the command line do; `jaxmerge.cli` only parses and calls `run`."""
