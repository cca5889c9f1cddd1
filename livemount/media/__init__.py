"""The media agent: copies, sources and the repository (restic format)."""

from livemount.media.registry import open_source
from livemount.media.source import Extent, Source

__all__ = ["Extent", "Source", "open_source"]
