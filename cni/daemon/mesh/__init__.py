"""The mesh: this node's WireGuard devices, their peers and routes, and the sources of peers."""
