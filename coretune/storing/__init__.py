"""Row-indexed signals on disk, under a fingerprint of all they depend on."""
