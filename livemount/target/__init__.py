"""The iSCSI target: exports a pseudo-disk to one initiator, with CHAP and an ACL."""
