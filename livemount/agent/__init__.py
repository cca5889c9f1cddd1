"""The media agent on another machine: sources served as NBD over mutual TLS by nbdkit, with a cache of its own."""
