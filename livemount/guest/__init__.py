"""Guest preparation: makes the guest on a pseudo-disk able to boot from iSCSI, without running its code."""
