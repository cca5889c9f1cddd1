"""The kinds of sources, one module each, opened by `livemount.media.registry`."""
