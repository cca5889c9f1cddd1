"""The boot server: the fixed URL answers each address with its own iPXE script."""
