"""The command line: `livemount`."""
