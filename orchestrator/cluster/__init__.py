"""Check cluster files, and run studies as jobs on a cluster."""
