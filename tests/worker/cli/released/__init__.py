"""The shapes of the answers of each release, and those of 0.1.0, which published none."""
