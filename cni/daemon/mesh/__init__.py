"""The mesh: this node's WireGuard devices, their peers and routes, and the cluster that says who the peers are."""
