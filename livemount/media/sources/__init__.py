"""The kinds of sources, one module a URI scheme, named after it; opened by `livemount.media.registry`."""
