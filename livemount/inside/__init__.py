"""What is inside an image: the files of the system on it, as a folder, for backups file by file."""
