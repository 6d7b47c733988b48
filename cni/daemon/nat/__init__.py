"""NAT traversal: this node's addresses outside, and the paths to its peers."""
