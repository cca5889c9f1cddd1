"""Configures live-mount hosts with the Ansible roles, and tells whether they still are what was configured."""
