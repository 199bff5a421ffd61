"""A Ray head and an S3 server on this machine, for trying out and for tests."""
